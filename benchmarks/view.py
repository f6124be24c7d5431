"""The viewer and the report on a million rows: time to the first address, memory, searches, the report.

    python benchmarks/view.py [--samples 1000000] [--scratch DIR] [--keep] [--browser]

The dataset is an index over tars of tiny images (``scale_source.py``): captions of 360 bytes, 39 words each out of 512,
then the sample's own number: a word of the 512 is common, a number is in one caption. Each search is asked for once,
of a viewer that was started a second ago; the pages of the index are in memory.
``--browser``: also the time until 60 pictures of a search are drawn by chromium (needs selenium).

Seconds are the best of three. MB: the viewer's own memory, without the files that it maps.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any
from urllib.parse import quote, urlsplit

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks.results import Results, add_json
from benchmarks.scale_source import PER_TAR, make_source

COMMAND = [sys.executable, "-m", "builder"]
ROUNDS = 3
CLOCK, PROCESSOR = "s", "s of processor"


class Viewer:
    """A viewer in a process of its own."""

    def __init__(self, dataset: str) -> None:
        started = time.perf_counter()
        command = [*COMMAND, "view", dataset, "--no-browser"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[0]
        self.opened = time.perf_counter() - started
        self.place = urlsplit(self.url)
        status, headers, _ = self.ask(f"/?{self.place.query}")
        assert status == 200
        self.cookie = headers["Set-Cookie"].split(";")[0]

    def ask(self, path: str) -> tuple[int, Any, bytes]:
        connection = http.client.HTTPConnection(self.place.hostname or "", self.place.port, timeout=120)
        connection.request("GET", path, headers={"Cookie": getattr(self, "cookie", "")})
        response = connection.getresponse()
        return response.status, response.headers, response.read()

    def search(self, text: str, *, whole: bool = False) -> tuple[float, int]:
        """Seconds until 60 hits are there (``whole``: until all are known), and how many."""
        started = time.perf_counter()
        while True:
            page = json.loads(self.ask(f"/api/rows?limit=60&search={quote(text)}")[2])
            if page["done"] or (len(page["rows"]) == 60 and not whole):
                return time.perf_counter() - started, page["total"]

    def processor(self) -> float:
        """Seconds of processor time so far. Steadier than the clock on a machine that has other work."""
        with open(f"/proc/{self.process.pid}/stat") as status:
            fields = status.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """MB of its own: without the files that it maps."""
        with open(f"/proc/{self.process.pid}/status") as status:
            found = re.search(r"RssAnon:\s+(\d+)", status.read())
        assert found is not None
        return int(found[1]) / 1e3

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)


SEARCHES = {
    # a line of the table: is the word common, and are all hits wanted or the first 60?
    "the first 60 hits of a common word": (True, False),
    "all hits of a common word": (True, True),
    "the hit of a word of one caption": (False, True),
}

REQUESTS = {
    "the first 100 rows": "/api/rows?limit=100",
    "the last 100 rows": "/api/rows?limit=100&offset={last}",
    "100 rows, sorted by the captions' lengths": "/api/rows?limit=100&sort=-caption_length",
    "100 rows of a range of widths": "/api/rows?limit=100&filter=width:0:2",
    "a histogram of the widths": "/api/histograms/width",
    "100 rows of a condition in SQL": f"/api/rows?limit=100&where={quote('width >= 1 and length(caption) > 200')}",
    "the phrases that occur most": "/api/phrases",
}


def measure(results: Results, dataset: str, samples: int) -> None:
    word = caption_of(dataset, 0).split()[0]
    rare = f"{samples - 1:09d}"
    opened, memory = [], []
    times: dict[str, dict[str, list[float]]] = {name: {CLOCK: [], PROCESSOR: [], "hits": []} for name in SEARCHES}
    for _ in range(ROUNDS):
        for name, (common, whole) in SEARCHES.items():
            viewer = Viewer(dataset)
            opened.append(viewer.opened)
            memory.append(viewer.memory())
            time.sleep(1)
            before = viewer.processor()
            seconds, total = viewer.search(word if common else rare, whole=whole)
            times[name][CLOCK].append(seconds)
            times[name][PROCESSOR].append(viewer.processor() - before)
            times[name]["hits"].append(total)
            viewer.close()
    results.add("from the command to its address", {CLOCK: min(opened), "MB": max(memory)})
    for name, each in times.items():
        results.add(name, {unit: min(values) for unit, values in each.items()})
    viewer = Viewer(dataset)
    for name, path in REQUESTS.items():
        started = time.perf_counter()
        while not json.loads(viewer.ask(path.format(last=samples - 100))[2]).get("done", True):
            pass
        results.add(name, {CLOCK: time.perf_counter() - started})
    results.add("after all of these", {"MB": viewer.memory()})
    viewer.close()
    started = time.perf_counter()
    subprocess.run([*COMMAND, "report", dataset, f"{dataset}/report.html"], check=True, capture_output=True)
    size = os.path.getsize(f"{dataset}/report.html")
    results.add("the report (MB: its file)", {CLOCK: time.perf_counter() - started, "MB": size / 1e6})


def caption_of(dataset: str, row: int) -> str:
    from builder import open_dataset

    return str(open_dataset(dataset)[row].caption)


def pictures(dataset: str) -> float:
    """Seconds from the last key of a search until 60 pictures of its hits are drawn."""
    from selenium import webdriver
    from selenium.webdriver.common.by import By

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=2200,2000"):
        options.add_argument(argument)
    word = caption_of(dataset, 0).split()[0]
    viewer, browser = Viewer(dataset), webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    drawn = (
        "return [...document.querySelectorAll('.tile')].filter(tile => tile.querySelector('mark')"
        " && tile.querySelector('img')?.complete).length"
    )
    try:
        browser.get(viewer.url)
        time.sleep(1)
        box = browser.find_element(By.ID, "search")
        box.send_keys(word)
        started = time.perf_counter()
        while browser.execute_script(drawn) < 60:
            time.sleep(0.01)
        return time.perf_counter() - started
    finally:
        browser.quit()
        viewer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1_000_000, help=f"a multiple of {PER_TAR:,}")
    parser.add_argument("--scratch", default=None)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--browser", action="store_true")
    add_json(parser)
    arguments = parser.parse_args()
    scratch = os.path.join(arguments.scratch or tempfile.gettempdir(), "laion6m-view")  # DIR itself may hold more
    source, dataset = os.path.join(scratch, "source"), os.path.join(scratch, "index")
    if not os.path.exists(dataset):
        make_source(source, arguments.samples)
        subprocess.run([*COMMAND, "index", source, dataset, "--digest"], check=True, capture_output=True)
    results = Results()
    measure(results, dataset, arguments.samples)
    if arguments.browser:
        results.add("60 pictures of a search, drawn in a browser", {CLOCK: pictures(dataset)})
    results.finish(arguments.json)
    if not arguments.keep:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
