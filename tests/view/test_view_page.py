"""The page in a real browser: pictures, search, SQL, filters, detail, keyboard, tabs, widths, colours."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from builder.view.report import report
from tests.view.asked import HOSTILE, foreign
from tests.view.conftest import Visit

selenium = pytest.importorskip("selenium", reason="the page is tested with selenium, in chromium")
DRIVER = shutil.which("chromedriver")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
if not (DRIVER and CHROMIUM):
    pytest.skip("no chromium with its driver here: apt-get install chromium chromium-driver", allow_module_level=True)

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

pytestmark = pytest.mark.slow


class Page:
    """A window on a viewer."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.driver.get(url)
        self.until(lambda: self.total() >= 0)

    def all(self, name: str) -> list[Any]:
        return list(self.driver.find_elements(By.CSS_SELECTOR, f'[data-testid="{name}"]'))

    def one(self, name: str) -> Any:
        return self.all(name)[0]

    def js(self, expression: str, *values: Any) -> Any:
        return self.driver.execute_script(f"return {expression}", *values)

    def until(self, holds: Callable[[], Any], seconds: float = 10) -> None:
        end = time.monotonic() + seconds
        while True:
            try:
                if holds():
                    return
            except (IndexError, ValueError, selenium.common.exceptions.WebDriverException):
                pass
            assert time.monotonic() < end, (
                f"not in {seconds} s; the page says: {self.js('document.body.innerText')[:300]}"
            )
            time.sleep(0.02)

    def total(self) -> int:
        return int(self.one("total").get_attribute("data-value"))

    def pictures(self) -> int:
        tiles = "[...document.querySelectorAll('[data-testid=tile] img')]"
        return int(self.js(f"{tiles}.filter(image => image.complete && image.naturalWidth > 8).length"))

    def write(self, name: str, text: str, *after: str) -> None:
        self.one(name).send_keys(Keys.CONTROL, "a")
        self.one(name).send_keys(Keys.DELETE)
        self.one(name).send_keys(text, *after)

    def press(self, *keys: str) -> None:
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def detail(self) -> str:
        """The caption of the open detail; "" where none is open."""
        shown = self.all("detail-caption")
        return str(shown[0].text) if shown else ""

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [reduced("reduce")]})
    yield driver
    driver.quit()


def reduced(value: str) -> dict[str, str]:
    return {"name": "prefers-reduced-motion", "value": value}


@pytest.fixture
def page(driver: Any, demo_folder: Path, visit: Visit, tmp_path: Path) -> Page:
    """On the demo's 291 rows, with its source at hand."""
    visitor = visit(demo_folder / "out", source=str(demo_folder / "source"), save=str(tmp_path / "saved"))
    page = Page(driver)
    page.open(visitor.server.url)
    return page


def test_pictures_and_captions_are_seen_and_nothing_is_asked_of_others(page: Page) -> None:
    page.until(lambda: page.pictures() >= 12)
    assert page.total() == 291
    assert "token" not in page.js("location.href"), "an address that is copied or photographed gives nothing away"
    here = urlsplit(page.js("location.href")).netloc
    asked = page.driver.get_log("performance")
    hosts = {
        part.split("/")[2] for entry in asked for part in entry["message"].split('"url":"')[1:] if "http" in part[:5]
    }
    assert hosts == {here}
    assert page.complaints() == []


def test_hits_come_as_one_types_and_say_why(page: Page) -> None:
    page.write("search", "violet WIDE")
    page.until(lambda: 0 < page.total() < 291)
    page.until(lambda: "violet" in page.all("tile")[0].text.lower())
    assert {mark.text.lower() for mark in page.driver.find_elements(By.TAG_NAME, "mark")} == {"violet", "wide"}
    page.write("search", "nothing-like-that")
    page.until(lambda: page.total() == 0)
    assert "No row matches" in page.js("document.body.innerText")
    assert page.all("tile") == []


def test_sql_is_applied_on_enter_and_its_error_stands_below_it(page: Page) -> None:
    pytest.importorskip("duckdb")
    page.write("where", "width > height")
    time.sleep(0.2)
    assert page.total() == 291
    page.one("where").send_keys(Keys.ENTER)
    page.until(lambda: page.total() == 146 or 0 < page.total() < 291)
    page.write("where", "width >", Keys.ENTER)
    page.until(lambda: "error" in page.driver.find_element(By.ID, "problem").text)
    page.write("where", "", Keys.ENTER)
    page.until(lambda: page.total() == 291)
    assert not page.driver.find_element(By.ID, "problem").is_displayed()


def test_a_bar_of_a_histogram_narrows_the_rows_and_a_chip_widens_them(page: Page) -> None:
    page.driver.find_element(By.ID, "filters-button").click()
    page.until(lambda: len(page.driver.find_elements(By.CSS_SELECTOR, "#filters svg")) >= 6)
    bar = page.driver.find_element(By.CSS_SELECTOR, "#filters svg a")
    count = int(bar.get_attribute("aria-label").split(": ")[1].split()[0])
    bar.click()
    page.until(lambda: page.total() == count)
    page.driver.find_element(By.CSS_SELECTOR, "#chips .chip").click()
    page.until(lambda: page.total() == 291)


def test_the_keyboard_alone_is_enough(page: Page) -> None:
    page.until(lambda: page.pictures() >= 12)
    page.press("/")
    page.press("teal")
    page.until(lambda: page.total() < 291)
    first = page.all("tile")[0]
    page.js("arguments[0].focus()", first)
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert page.js("document.activeElement.dataset.index") == "2"
    page.press(Keys.ENTER)
    page.until(page.detail)
    assert page.js("document.activeElement.className") == "close"
    row = page.js("location.hash")
    page.press(Keys.ARROW_RIGHT)
    page.until(lambda: page.js("location.hash") != row)
    page.press(Keys.ARROW_LEFT)
    page.until(lambda: page.js("location.hash") == row)
    page.press(*[Keys.TAB] * 12)
    assert page.js("document.getElementById('detail').contains(document.activeElement)"), "Tab stays within"
    page.press(Keys.ESCAPE)
    page.until(lambda: not page.one("detail").is_displayed())
    assert page.js("document.activeElement.dataset.index") == "2", "the focus is back where it was"


def test_arrow_keys_open_the_first_picture_in_sight(page: Page) -> None:
    page.until(lambda: page.pictures() >= 12)
    page.press(Keys.ARROW_RIGHT)
    page.until(lambda: page.detail().startswith("Red rings"))


def test_the_detail_has_an_address_that_shows_it_again(page: Page) -> None:
    page.write("search", "golden")
    page.until(lambda: page.total() < 291)
    page.all("tile")[1].click()
    page.until(lambda: "olden" in page.detail())
    caption, address = page.detail(), page.js("location.href")
    images = "[...document.querySelectorAll('[data-testid=detail] .matte img')]"
    page.until(lambda: page.js(f"{images}.some(image => image.naturalWidth > 20)"))
    assert "similarity" in page.one("detail").text, "the annotation is a tree"
    page.driver.get("about:blank")
    page.driver.get(address)
    page.until(lambda: page.detail() == caption)
    assert page.one("search").get_attribute("value") == "golden"
    page.driver.back()


def test_rejects_duplicates_and_statistics_are_tabs(page: Page) -> None:
    page.one("tab-rejects").click()
    page.until(lambda: "image_truncated" in page.driver.find_element(By.ID, "rejects").text)
    page.until(lambda: page.js("document.querySelectorAll('#rejects img').length") >= 5)
    page.one("tab-duplicates").click()
    page.until(lambda: "groups" in page.driver.find_element(By.ID, "duplicates").text)
    page.driver.find_element(By.CSS_SELECTOR, "#duplicates .strip button").click()
    page.until(page.detail)
    page.press(Keys.ESCAPE)
    page.one("tab-statistics").click()
    page.until(lambda: "rings on" in page.driver.find_element(By.ID, "statistics").text)
    assert page.js("document.querySelectorAll('#statistics svg').length") >= 7
    assert "image_missing" in page.driver.find_element(By.ID, "statistics").text
    page.driver.back()
    page.until(lambda: page.driver.find_element(By.ID, "duplicates").is_displayed())


def test_a_selection_is_saved_and_its_command_is_shown(page: Page, tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    page.write("search", "teal")
    page.until(lambda: page.total() < 291)
    page.driver.find_element(By.ID, "save-button").click()
    page.until(lambda: "laion6m select" in page.driver.find_element(By.ID, "save").text)
    name = page.driver.find_element(By.CSS_SELECTOR, "#save input")
    name.send_keys("teal", Keys.ENTER)
    page.until(lambda: "Saved" in page.driver.find_element(By.ID, "save").text)
    assert (tmp_path / "saved" / "teal" / "meta" / "selection.json").exists()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_reaches_over_the_edge_and_words_stand_out(page: Page, width: int, scheme: str) -> None:
    try:
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}, reduced("reduce")]}
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        for tab in ("tab-rejects", "tab-duplicates", "tab-statistics", "tab-samples"):
            page.one(tab).click()
            page.until(lambda: page.js("document.documentElement.scrollWidth <= innerWidth"))
        page.until(lambda: page.pictures() >= 4)
        beyond = "[...document.querySelectorAll('.tile')].filter(t => t.getBoundingClientRect().right > innerWidth)"
        assert page.js(f"{beyond}.length") == 0
        assert page.js("document.querySelectorAll('.tile')[0].getBoundingClientRect().width") > 140
        ground, ink = (page.js(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
        assert contrast(ground, ink) > 7
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [reduced("reduce")]})


def contrast(*colors: str) -> float:
    """WCAG 2: of two colours as the browser names them, 1 to 21."""

    def light(color: str) -> float:
        values = [int(each) / 255 for each in color[color.index("(") + 1 : -1].split(",")[:3]]
        linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in values]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted(map(light, colors))
    return (high + 0.05) / (low + 0.05)


def test_names_and_texts_for_those_who_do_not_see(page: Page) -> None:
    page.until(lambda: page.pictures() >= 12)
    assert page.js("document.documentElement.lang") == "en"
    assert "out" in page.js("document.title")
    unlabelled = "[...document.querySelectorAll('input, select')].filter(i => !i.labels.length && !i.ariaLabel)"
    assert page.js(f"{unlabelled}.length") == 0
    assert page.js("[...document.images].filter(image => !image.hasAttribute('alt')).length") == 0
    assert page.js("[...document.querySelectorAll('button')].filter(b => !b.innerText && !b.ariaLabel).length") == 0
    assert page.driver.find_element(By.CSS_SELECTOR, "[role=tab][aria-selected=true]").text == "Samples"


@pytest.mark.parametrize("total", [600, 6_000_000])
def test_six_million_rows_cost_no_more_than_600(page: Page, total: int) -> None:
    """The gallery is asked about as many rows as it is told there are; the server is not."""
    page.until(lambda: page.pictures() >= 12)
    page.js(
        """(() => {
          const total = arguments[0];
          const row = (at) => ({ row: at % 291, key: String(at), caption: `number ${at}`, width: 4, height: 3 });
          const page = (offset) => Array.from({ length: Math.min(100, total - offset) }, (_, at) => row(offset + at));
          const own = window.fetch;
          window.fetch = async (path, ...more) => {
            const address = new URL(path, location.href);
            if (!address.pathname.endsWith("/api/rows")) return own(path, ...more);
            const rows = page(Number(address.searchParams.get("offset")));
            return new Response(JSON.stringify({ total, done: true, terms: [], rows }));
          };
        })()""",
        total,
    )
    page.write("search", "x")
    page.until(lambda: page.total() == total)
    scroller = "document.getElementById('scroller')"
    page.js(f"{scroller}.scrollTo(0, {scroller}.scrollHeight)")
    page.until(lambda: f"number {total - 1}" in [tile.text for tile in page.all("tile")])
    assert len(page.all("tile")) < 80
    assert page.js(f"{scroller}.scrollHeight") < 5_000_000
    last = page.js(f"{scroller}.scrollTop")
    page.js(f"{scroller}.scrollBy(0, -200)")
    time.sleep(0.5)
    shown = sorted(int(tile.get_attribute("data-key") or -1) for tile in page.all("tile"))
    assert total - 60 < shown[-1] <= total - 1, "a small step is a small step, however much there is"
    page.js(f"{scroller}.scrollTo(0, {last} / 2)")
    page.until(lambda: abs(int(page.all("tile")[0].get_attribute("data-index")) - total / 2) < total * 0.1 + 60)
    page.js(f"{scroller}.scrollTo(0, 0)")
    page.until(lambda: "number 0" in [tile.text for tile in page.all("tile")])


def test_hostile_captions_are_text_on_the_page_and_in_the_report(driver: Any, visit: Visit, tmp_path: Path) -> None:
    folder = foreign(tmp_path, HOSTILE)
    page = Page(driver)
    page.open(visit(folder).server.url)
    page.until(lambda: page.pictures() >= len(HOSTILE))
    page.all("tile")[0].click()
    page.until(lambda: page.detail() == HOSTILE[0])
    assert "pwned" not in page.js("document.title")
    assert page.js("document.querySelectorAll('[onerror], [onload], main script').length") == 0
    page.press(Keys.ESCAPE)
    page.one("tab-statistics").click()
    page.until(lambda: page.js("document.querySelectorAll('#statistics svg').length") >= 6)
    report(folder, tmp_path / "report.html")
    driver.get((tmp_path / "report.html").as_uri())
    assert "pwned" not in page.js("document.title")
    assert HOSTILE[0] in page.js("document.body.innerText")
    assert page.js("document.querySelectorAll('[onerror], [onload], script').length") == 0
    assert page.js("[...document.images].filter(image => image.naturalWidth > 8).length") >= len(HOSTILE)
    assert page.complaints() == []
