"""Run `python -m tests.picture [--out assets/app.png]`: the picture of the app in the README, taken from the app itself."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Open the app on an empty lab, so on its example, and photograph the Compare tab's drift and verdict side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "app.png")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as lab:
        command = [sys.executable, str(ROOT / "app.py"), "--lab", lab, "--port", "0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": 1200, "height": 820}, device_scale_factor=1.5)
                page.goto(f"{address}?__theme=light")
                page.get_by_role("tab", name="4 Compare", exact=True).click()
                page.locator("#verdicts .verdicts li").first.wait_for()
                page.screenshot(path=str(out))
                browser.close()
        finally:
            server.terminate()
            server.wait()
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
