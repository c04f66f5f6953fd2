"""Run pytest with the arguments given, and show what it covered: `make coverage`.

The data file is .coverage/data, or what COVERAGE_FILE names, alone in a folder that every user may write: some
tests run as others.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from coverage import Coverage, CoverageData

from .hooks import FORKED, ROOT

CONFIG = str(ROOT / "pyproject.toml")
STARTUP = Path(sysconfig.get_path("purelib")) / "a2_hooks_of_coverage.pth"
"""Executed when Python starts, after the a1_coverage.pth that starts coverage itself. It stays there."""
LINE = (
    'import os; os.getenv("COVERAGE_PROCESS_CONFIG") and exec(compile(open({0!r}).read(), {0!r}, "exec"), '
    '{{"__name__": "coverage_hooks", "__file__": {0!r}}})\n'
).format(str(ROOT / "tests/coverage/hooks.py"))


def main(arguments: list[str]) -> int:
    """Return pytest's exit code."""
    data = Path(os.environ.get("COVERAGE_FILE", ROOT / ".coverage" / "data")).absolute()
    data.parent.mkdir(exist_ok=True)
    data.parent.chmod(0o1777)
    for old in data.parent.iterdir():
        old.unlink()
    start_with_python()
    ours = ("COVERAGE_PROCESS_CONFIG", "GITHUB_STEP_SUMMARY")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment |= {"COVERAGE_PROCESS_START": CONFIG, "COVERAGE_FILE": str(data)}
    command = [sys.executable, "-m", "pytest", *arguments]
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    for forked in data.parent.glob(f"{data.name}{FORKED}*"):
        convert(forked, data)
    os.chdir(ROOT)
    found = Coverage(str(data), config_file=CONFIG)
    found.combine()
    found.save()
    found.report()
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(summary, "a", encoding="utf-8") as page:
            page.write("### Coverage\n\n")
            found.report(file=page, output_format="markdown")
    return status


def start_with_python() -> None:
    """Have every Python of this environment install the hooks, if it is measured."""
    if not STARTUP.exists() or STARTUP.read_text() != LINE:
        new = STARTUP.with_suffix(f".{os.getpid()}")
        new.write_text(LINE)
        new.replace(STARTUP)


def convert(forked: Path, data: Path) -> None:
    """Make a data file of what a forked process has written; nothing of one that was killed before."""
    content = forked.read_bytes()
    forked.unlink()
    if content:
        found = CoverageData(str(data), suffix=forked.name.partition(FORKED)[2])
        found.loads(content)
        found.write()
        found.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
