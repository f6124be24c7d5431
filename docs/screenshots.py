"""Take the pictures of docs/howto/look.md: of the viewer and the report, on the images that `laion6m demo` draws.

python docs/screenshots.py writes docs/images/*.png. Needs chromium with its driver, and selenium.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from builder.jobs.demo import demo  # noqa: E402
from builder.view.report import report  # noqa: E402
from builder.view.view import Options, open_server  # noqa: E402

IMAGES = ROOT / "docs" / "images"


class Camera:
    """A browser of a size and a colour scheme."""

    def __init__(self, width: int, height: int, scheme: str) -> None:
        options = webdriver.ChromeOptions()
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
            options.add_argument(argument)
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def open(self, url: str, *steps: tuple[str, str]) -> None:
        """``steps``: CSS selectors, and text to type there; without text, a click."""
        self.driver.get(url)
        time.sleep(1.5)
        for selector, text in steps:
            found: Any = self.driver.find_element(By.CSS_SELECTOR, selector)
            if text:
                found.send_keys(text)
            else:
                found.click()
            time.sleep(1.5)

    def take(self, name: str) -> None:
        """256 colours: a third of the size, and rings and letters look the same."""
        shot = Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
        shot.quantize(256, dither=Image.Dither.NONE).save(IMAGES / f"{name}.png", optimize=True)
        self.driver.quit()


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "laion6m-demo"
        demo(str(folder))
        (folder / "out").rename(folder / "demo")
        source = str(folder / "source")
        server = open_server(str(folder / "demo"), Options(browser=False, source=source))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        pictures: list[tuple[str, int, int, str, list[tuple[str, str]]]] = [
            ("view", 1280, 800, "light", [("#search", "wide"), ("#filters-button", "")]),
            ("view-dark", 1280, 800, "dark", [("#search", "teal"), (".tile:nth-child(2)", "")]),
            ("view-rejects", 1280, 800, "light", [("#tab-rejects", "")]),
            ("view-phone", 390, 780, "dark", []),
        ]
        for name, width, height, scheme, steps in pictures:
            camera = Camera(width, height, scheme)
            camera.open(server.url, *steps)
            camera.take(name)
        server.shutdown()
        report(folder / "demo", folder / "report.html", source=source)
        camera = Camera(1280, 800, "light")
        camera.open((folder / "report.html").as_uri())
        camera.take("report")


if __name__ == "__main__":
    main()
