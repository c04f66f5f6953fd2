"""The tools that are compared, and the same chain of commands written for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PEERS", "Peer"]


@dataclass(frozen=True, slots=True)
class Peer:
    """How to install a tool, write its project, and run it."""

    name: str
    packages: tuple[str, ...]
    write: Callable[[Path, int, str], None]
    run: tuple[str, ...]
    setup: tuple[tuple[str, ...], ...] = ()


def _write_ours(folder: Path, count: int, extra: str) -> None:
    lines = ["version: 1", "name: chain", "stages:"]
    for i in range(count):
        source = f'"${{{{ stages.s{i - 1}.outputs.o }}}}"' if i else "in.txt"
        also = f", big: {extra}" if extra and not i else ""
        lines.append(
            f"  s{i}: {{uses: run.command, inputs: {{x: {source}{also}}}, outputs: {{o: o.txt}}, "
            f'with: {{command: "cat $INPUT_X > $OUTPUT_O; echo {i} >> $OUTPUT_O"}}}}'
        )
    (folder / "pipeline.yaml").write_text("\n".join(lines) + "\n")


def _write_dvc(folder: Path, count: int, extra: str) -> None:
    lines = ["stages:"]
    for i in range(count):
        source = f"o{i - 1}.txt" if i else "in.txt"
        lines += [
            f"  s{i}:",
            f"    cmd: cat {source} > o{i}.txt; echo {i} >> o{i}.txt",
            f"    deps: [{source}]",
            f"    outs: [o{i}.txt]",
        ]
    (folder / "dvc.yaml").write_text("\n".join(lines) + "\n")


def _write_doit(folder: Path, count: int, extra: str) -> None:
    (folder / "dodo.py").write_text(
        "def task_chain():\n"
        f"    for i in range({count}):\n"
        "        source = f'o{i - 1}.txt' if i else 'in.txt'\n"
        "        yield {'name': str(i), 'actions': [f'cat {source} > o{i}.txt; echo {i} >> o{i}.txt'],\n"
        "               'file_dep': [source], 'targets': [f'o{i}.txt']}\n"
    )


PEERS = (
    Peer(
        "ours",
        (str(Path(__file__).parent.parent),),
        _write_ours,
        ("deploy-runner", "run", "pipeline.yaml", "-q"),
    ),
    Peer("dvc", ("dvc==3.67.1",), _write_dvc, ("dvc", "repro", "-q"), (("dvc", "init", "--no-scm", "-q"),)),
    Peer("doit", ("doit==0.37.0",), _write_doit, ("doit", "-v", "0")),
)
