"""The report: one file, offline, under its size; its numbers; its pictures."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from builder import open_dataset
from builder.base.records import SampleProblem
from builder.curate.thumbnails import make_thumbnail
from builder.view.report import MOST_BYTES, report
from builder.view.thumbnails import Thumbnails
from tests.view.asked import HOSTILE, foreign


class Tags(HTMLParser):
    """Names and attributes of all tags, and all text outside of them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_one_file_has_pictures_plots_rejects_and_asks_nobody(demo_folder: Path, tmp_path: Path) -> None:
    made = report(demo_folder / "out", tmp_path / "report.html", source=str(demo_folder / "source"))
    text = (tmp_path / "report.html").read_text()
    page = Tags(text)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) > 100
    assert all((image["src"] or "").startswith("data:image/") and image["alt"] for image in images)
    assert [tag for tag, _ in page.tags].count("svg") >= 7
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    assert not re.search(r"(src|href|url\()\s*=?\s*[\"']?(https?:)?//", text)
    assert "image_truncated" in page.text
    assert "Red rings on" in page.text
    assert (tmp_path / "report.html").stat().st_size < MOST_BYTES
    assert made.to_json()["rejected"]["image_truncated"] == 2


def test_the_numbers_alone_are_json(demo_folder: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "builder", "report", str(demo_folder / "out"), "--json"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    found = json.loads(run.stdout)
    assert (found["rows"], found["file"], found["kind"]) == (291, None, "Parquet")
    assert [step["name"] for step in found["funnel"]][::8] == ["listed", "rows"]
    assert sum(found["formats"].values()) == 291
    assert found["duplicates"]["groups"] > 0
    assert {bars["name"] for bars in found["histograms"]} >= {"width", "ratio", "caption_words"}
    assert list(tmp_path.iterdir()) == [], "without a FILE nothing is written"


@pytest.mark.parametrize("caption", HOSTILE)
def test_hostile_captions_are_text(caption: str, tmp_path: Path) -> None:
    report(foreign(tmp_path, [caption, caption]), tmp_path / "report.html")
    page = Tags((tmp_path / "report.html").read_text())
    assert caption.replace("\0", "\ufffd") in page.text.replace("\0", "\ufffd")
    assert not [each for each in page.tags if each[0] == "script" or any(name.startswith("on") for name in each[1])]


def test_of_nothing_and_of_a_selection_there_is_a_report_too(demo_folder: Path, tmp_path: Path) -> None:
    made = report(foreign(tmp_path, []), tmp_path / "empty.html")
    assert made.to_json()["rows"] == 0
    rows = open_dataset(demo_folder / "out").sample(20, seed=0)
    rows.save(tmp_path / "some")
    found = report(tmp_path / "some", tmp_path / "some.html").to_json()
    assert (found["rows"], found["kind"]) == (20, "selection")
    assert found["funnel"][-1] == {"name": "sample 20, seed 0", "rows": 20, "kind": "kept"}
    assert report(rows).to_json()["rows"] == 20, "rows that are open already"


def test_pictures_stop_where_the_file_would_grow_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.view.report._PICTURES", 20_000)
    folder = foreign(tmp_path, ["noise"] * 100, [noise(number) for number in range(100)])
    report(folder, tmp_path / "report.html")
    page = Tags((tmp_path / "report.html").read_text())
    assert sum(len(attributes["src"] or "") for tag, attributes in page.tags if tag == "img") < 200_000
    assert "no picture" in page.text


def noise(
    number: int, form: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = (200, 150), **options: object
) -> bytes:
    from PIL import Image

    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    sink = io.BytesIO()
    Image.frombytes(mode, size, pixels.tobytes()).save(sink, form, **options)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("form", "mode", "kind"),
    [
        ("JPEG", "RGB", "image/jpeg"),
        ("JPEG", "L", "image/jpeg"),
        ("JPEG", "CMYK", "image/jpeg"),
        ("PNG", "RGB", "image/jpeg"),
        ("PNG", "RGBA", "image/png"),
        ("PNG", "LA", "image/png"),
        ("GIF", "L", "image/jpeg"),
        ("TIFF", "RGB", "image/jpeg"),
        ("BMP", "RGB", "image/jpeg"),
    ],
)
def test_thumbnails_of_every_kind_fit_into_their_square(form: str, mode: str, kind: str) -> None:
    from PIL import Image

    made = make_thumbnail(noise(0, form, mode, (900, 400)), 160)
    assert (made.media_type, made.width, made.height) == (kind, 160, 71)
    assert Image.open(io.BytesIO(made.data)).size == (160, 71)
    assert make_thumbnail(noise(0, form, mode, (30, 20)), 160).width == 30, "none is made larger"


def test_a_thumbnail_stands_upright() -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    made = make_thumbnail(noise(0, size=(400, 200), exif=exif), 160)
    assert (made.width, made.height) == (80, 160)


@pytest.mark.parametrize("data", [b"", b"<svg/>", b"\xff\xd8\xff\xe0 not more", noise(1)[:2000]])
def test_what_cannot_be_decoded_is_told(data: bytes) -> None:
    with pytest.raises(SampleProblem):
        make_thumbnail(data, 160)


def test_a_picture_of_too_many_pixels_is_not_decoded() -> None:
    from PIL import Image

    sink = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(sink, "PNG")
    with pytest.raises(SampleProblem, match="too large"):
        make_thumbnail(sink.getvalue(), 160)


def test_thumbnails_are_kept_by_name_and_the_oldest_forgotten() -> None:
    read: list[int] = []

    def image(number: int) -> bytes:
        read.append(number)
        return noise(number)

    size = len(make_thumbnail(noise(0), 160).data)
    kept = Thumbnails(most_bytes=int(2.5 * size))
    for number in (0, 1, 0, 1, 2, 1, 0):
        kept.get(number, 160, lambda number=number: image(number))
    assert read == [0, 1, 2, 0]
