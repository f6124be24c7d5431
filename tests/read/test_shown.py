"""Samples as Pillow images, as mappings, and as what a notebook shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from PIL import Image

from builder.base.errors import DamagedFileError
from builder.conversion.convert import convert
from builder.read.opening import open_dataset
from builder.read.reader import Reader
from builder.read.sample import Sample
from builder.read.shown import picture
from tests.sources import make_source


@pytest.fixture(scope="module")
def ds(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    out = tmp_path_factory.mktemp("shown")
    convert(make_source(out / "src").path, out / "out", num_proc=1, quiet=True)
    reader = open_dataset(out / "out")
    assert isinstance(reader, Reader)
    return reader


def test_a_sample_is_a_picture(ds: Reader) -> None:
    for sample in (ds[0], *ds[1:4], *ds[[5, 6]]):
        image = sample.pil
        assert isinstance(image, Image.Image)
        assert image.size == (sample.width, sample.height)
        assert image.getpixel((0, 0)) is not None  # decoded: its file is closed


def test_show_opens_the_picture(ds: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[Any, ...]] = []
    monkeypatch.setattr(Image.Image, "show", lambda *arguments: shown.append(arguments))
    ds[2].show()
    assert [(image.size, title) for image, title in shown] == [((ds[2].width, ds[2].height), ds[2].key)]


def test_a_sample_is_a_mapping_of_its_values(ds: Reader) -> None:
    sample = ds[3]
    assert isinstance(sample, Mapping)
    assert len(sample) == len(list(sample)) == len(sample.keys())
    assert dict(sample) == sample.to_dict()
    assert sample.to_dict() == {
        "image": sample.image,
        "key": sample.key,
        "caption": sample.caption,
        "width": sample.width,
        "height": sample.height,
        "annotation": sample.annotation,
    }
    assert sample["caption"] == sample.caption
    document = json.loads(sample.annotation)
    assert all(sample[name] == value for name, value in document.items() if name not in sample.to_dict())


def test_samples_are_equal_by_identity_and_hashable(ds: Reader) -> None:
    sample = ds[0]
    assert len({sample, sample, ds[0]}) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_loader_makes_batches_without_a_collate_fn(ds: Reader, workers: int) -> None:
    data = pytest.importorskip("torch.utils.data")
    batch = next(iter(data.DataLoader(ds, batch_size=4, num_workers=workers)))
    assert batch["image"] == [ds[number].image for number in range(4)]
    assert batch["caption"] == [ds[number].caption for number in range(4)]
    assert batch["width"].tolist() == [ds[number].width for number in range(4)]


def test_notebooks_show_pictures_captions_and_counts(ds: Reader) -> None:
    for shown in (ds, ds[2:9]):
        html = shown._repr_html_()
        assert f"{len(shown):,} rows" in html
        assert html.count("<img src=") == min(8, len(shown))
    html = ds[0]._repr_html_()
    assert html.count("<img src=") == 1
    assert ds[0].key in html


def test_nothing_of_a_stranger_s_caption_is_markup(ds: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sample, "caption", property(lambda self: '"><script>x</script>'))
    for shown in (ds[0], ds):
        assert "<script" not in shown._repr_html_()


def test_what_cannot_be_decoded_is_named_and_ends_no_gallery(ds: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sample, "image", property(lambda self: b"<html>"))
    with pytest.raises(DamagedFileError, match=ds[0].key):
        picture(ds[0])
    assert "that make rows" in ds._repr_html_()


def test_widths_stay_callable(ds: Reader) -> None:
    assert ds.widths().tolist() == [sample.width for sample in ds]


def test_an_empty_view_is_shown_too(ds: Reader) -> None:
    assert "0 rows" in ds[:0]._repr_html_()
