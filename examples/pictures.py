"""Take the picture of each example's report: `python examples/pictures.py [NAME …]`, with Chromium installed.

Each example is run from scratch in a copy of its folder, and the top of its report goes to its report.png.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from selenium import webdriver

HERE = Path(__file__).parent
WIDTH, HEIGHT, COLOURS = 1280, 900, 128


def main(names: list[str]) -> None:
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--force-color-profile=srgb"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.set_window_size(WIDTH, HEIGHT)
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                browser.get(report_of(HERE / name, Path(folder, name)).as_uri())
                metrics = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
                browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
                picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
            target = HERE / name / "report.png"
            picture.quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)
            print(f"{target}: {target.stat().st_size // 1024} KiB")
    finally:
        browser.quit()


def report_of(example: Path, copy: Path) -> Path:
    """Run a copy of an example; return the report of the run."""
    shutil.copytree(example, copy, ignore=shutil.ignore_patterns(".deploy-runner", "__pycache__"))
    env = {**os.environ, "DEPLOY_RUNNER_HOME": str(copy / ".deploy-runner")}
    subprocess.run([sys.executable, "-m", "deploy_runner", "run"], cwd=copy, env=env, check=True)
    (report,) = (copy / ".deploy-runner/runs").glob("*/report.html")
    return report


if __name__ == "__main__":
    main(sys.argv[1:] or sorted(path.parent.name for path in HERE.glob("*/pipeline.yaml")))
