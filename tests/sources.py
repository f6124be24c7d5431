"""Small sources made in code, in every layout, with faults of choice, and what has to come out of them.

    source = make_source(tmp_path / "src", layout="card", faults=("image_missing", "blank_caption"))
    convert(source.path, …, ConvertOptions(recaptions=source.recaptions))
    assert rows == source.rows and rejected == source.reasons and unlisted == source.unlisted

Layouts (``LAYOUTS``): ``card``; ``scattered`` (card, but the captions lie in tars of other names and another order);
``openuni``; ``extracted``; ``no_listing``; ``listing_folder``; ``img2dataset`` (recaptions joined by url) and
``img2dataset_key`` (by key). Faults: the keys of ``FAULTS``; ``faults_of(layout)`` are those a layout can have.
"""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

LAYOUTS = (
    "card",
    "scattered",
    "openuni",
    "extracted",
    "no_listing",
    "listing_folder",
    "img2dataset",
    "img2dataset_key",
)

FAULTS: dict[str, str | None] = {
    "image_missing": "image_missing",  # the image is in no tar
    "caption_missing": "caption_missing",  # the annotation is in no tar
    "duplicate": "duplicate",  # a second entry, at the end of the listing
    "truncated_image": "image_truncated",  # half a JPEG
    "not_an_image": "image_unreadable",
    "empty_image": "image_unreadable",
    "too_wide": "aspect_ratio",  # 64 × 16
    "blank_caption": "caption_invalid",
    "null_caption": "caption_invalid",
    "number_caption": "caption_invalid",
    "no_caption_key": "caption_invalid",
    "not_json": "caption_invalid",
    "not_an_object": "caption_invalid",
    "utf16": "caption_invalid",
    "cut_tar": "tar_damaged",  # the last raw tar ends within its last image
    "bom": None,  # from here on rows all the same
    "surrogate": None,  # a caption with half an emoji: U+FFFD in the row
    "rewritten": None,  # an older member of the same name before the image: the later one counts
    "stem_twin": None,  # another listed image that differs in its ending only: both keys keep theirs
    "unlisted": None,  # one more image that no entry names
}
"""Fault → the reason it is rejected with; None: no sample is lost by it."""

_DOCUMENT_FAULTS = {"no_caption_key", "not_json", "not_an_object", "utf16", "bom"}
_NOT_IN = {
    "extracted": {"cut_tar", "rewritten"},
    "no_listing": {"caption_missing", "duplicate", "stem_twin"},  # every annotation is an entry: none of these can be
    "img2dataset": {"caption_missing", "number_caption", "cut_tar", "stem_twin"} | _DOCUMENT_FAULTS,
}
_NOT_IN["img2dataset_key"] = _NOT_IN["img2dataset"]


class Row(NamedTuple):
    """A row to expect: the image's bytes, its caption, and the annotation's text."""

    image: bytes
    caption: str
    document: str


@dataclass(frozen=True)
class Source:
    """A source on disk. ``rows`` by key, in the order in which they come out; ``rejects``: key → reason (a duplicate's
    key is a row's too); ``paths``: key → image path as listed."""

    path: Path
    rows: dict[str, Row]
    rejects: dict[str, str]
    unlisted: int
    paths: dict[str, str]
    recaptions: tuple[str, ...] = ()

    @property
    def listed(self) -> int:
        return len(self.rows) + len(self.rejects)

    @property
    def reasons(self) -> dict[str, int]:
        """Rejects by reason, as totals count them."""
        return dict(Counter(self.rejects.values()))


@dataclass
class _Sample:
    """``image`` and ``document`` are what is written; None: not there."""

    folder: str
    name: str
    ending: str
    image: bytes | None
    caption: Any
    fields: dict[str, Any]
    document: bytes | None = b""
    older: bytes | None = None
    reason: str | None = None
    row_caption: str = ""
    listed: int = 1
    keeps_ending: bool = False
    json_name: str = ""

    @property
    def path(self) -> str:
        return "/".join(filter(None, [self.folder, f"{self.name}{self.ending}"]))

    @property
    def json_path(self) -> str:
        return "/".join(filter(None, [self.folder, f"{self.json_name or self.name}.json"]))

    @property
    def key(self) -> str:
        return self.path if self.keeps_ending else self.path.removesuffix(self.ending)


@dataclass
class _Tar:
    """Members in order; ``ends``: where the data of each lies."""

    path: Path
    folder: str = ""
    members: list[tuple[str, bytes]] = field(default_factory=list)

    def write(self) -> list[tuple[int, int]]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(self.path, "w", format=tarfile.GNU_FORMAT) as tar:
            if self.folder:
                info = tarfile.TarInfo(self.folder)
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
            for name, data in self.members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        with tarfile.open(self.path) as tar:
            return [(member.offset_data, member.size) for member in tar.getmembers() if member.isfile()]


@lru_cache(maxsize=1024)
def picture(seed: int, form: str = "JPEG", size: tuple[int, int] | None = None) -> bytes:
    """A small image of noise, 16 to 40 pixels a side unless ``size`` (width, height) is given."""
    rng = random.Random(seed)
    width, height = size or (rng.randint(16, 40), rng.randint(16, 40))
    sink = io.BytesIO()
    Image.frombytes("RGB", (width, height), rng.randbytes(width * height * 3)).save(sink, form)
    return sink.getvalue()


def faults_of(layout: str) -> tuple[str, ...]:
    """The faults that a source of this layout can have."""
    return tuple(fault for fault in FAULTS if fault not in _NOT_IN.get(layout, ()))


def make_source(
    folder: Path, layout: str = "card", shards: int = 3, per_shard: int = 8, faults: Sequence[str] = ()
) -> Source:
    """Write a source of ``shards`` × ``per_shard`` samples into ``folder`` (which is made) and say what it holds.

    Each of ``faults`` befalls one sample; they are spread evenly, the first sample is always sound. ``unlisted`` and
    ``stem_twin`` add an image, ``duplicate`` an entry. The same arguments give the same source.
    """
    wrong = set(faults) - set(faults_of(layout))
    if layout not in LAYOUTS or wrong:
        raise ValueError(f"layout {layout!r} with faults {sorted(wrong)}")
    flat = layout.startswith("img2dataset")
    groups = [[_sample(shard * per_shard + i, shard, layout) for i in range(per_shard)] for shard in range(shards)]
    everyone = [sample for group in groups for sample in group]
    hit = [fault for fault in faults if fault != "cut_tar"]
    if len(hit) > len(everyone) - 2:
        raise ValueError(f"{len(everyone)} samples are too few for {len(hit)} faults")
    for number, fault in enumerate(hit):
        victim = everyone[1 + number * (len(everyone) - 2) // len(hit)]
        _befall(fault, victim, groups[everyone.index(victim) // per_shard])
    if "cut_tar" in faults:
        groups[-1][-1].reason = "tar_damaged"
    folder.mkdir(parents=True, exist_ok=True)
    everyone = [sample for group in groups for sample in group]
    if layout == "extracted":
        _write_files(folder, everyone)
    else:
        _write_tars(folder, groups, layout, cut="cut_tar" in faults)
    listed = [sample for sample in everyone if sample.listed]
    listed += [sample for sample in listed if sample.listed > 1]
    recaptions: tuple[str, ...] = ()
    if flat:
        recaptions = (_write_recaptions(folder.parent / f"{folder.name}-recaptions.parquet", listed, layout),)
    elif layout == "listing_folder":
        (folder / "data.json").mkdir()
        half = len(listed) // 2
        _write_listing(folder / "data.json" / "a.json", listed[:half])
        _write_listing(folder / "data.json" / "b.json", listed[half:])
    elif layout != "no_listing":
        _write_listing(folder / "data.json", listed)
    return Source(
        path=folder,
        rows={s.key: Row(s.image or b"", s.row_caption, _text(s, layout)) for s in _in_order(groups) if _is_row(s)},
        rejects={s.key: s.reason for s in listed if s.reason} | {s.key: "duplicate" for s in everyone if s.listed > 1},
        unlisted=sum(not sample.listed for sample in everyone),
        paths={sample.key: sample.path for sample in everyone},
        recaptions=recaptions,
    )


def _sample(number: int, shard: int, layout: str) -> _Sample:
    form, ending = {3: ("PNG", ".png"), 5: ("WEBP", ".webp")}.get(number % 7, ("JPEG", ".jpg"))
    caption = f'Caption {number}: naïve 図 with "quotes"' + "!" * (number % 5)
    fields: dict[str, Any] = {"url": f"https://example.org/{number}{ending}", "key": f"{number:09d}"}
    fields |= {"TEXT": f"alt {number}", "AESTHETIC_SCORE": 6.25 + number / 64, "similarity": None}
    flat = layout.startswith("img2dataset")
    sample = _Sample("" if flat else f"{shard:05d}", f"{number:09d}", ending, picture(number, form), caption, fields)
    sample.row_caption = caption
    if layout == "openuni":
        sample.fields["re_caption"] = caption
        sample.fields["caption"] = "the alt text, which is not meant"
    else:
        sample.fields["caption"] = f"alt {number}" if flat else caption
    sample.document = json.dumps(sample.fields, ensure_ascii=number % 2 == 0).encode()
    return sample


def _befall(fault: str, sample: _Sample, group: list[_Sample]) -> None:
    sample.reason = None if fault == "duplicate" else FAULTS[fault]
    own_key = "re_caption" if "re_caption" in sample.fields else "caption"
    values: dict[str, Any] = {"blank_caption": " \n\t ", "null_caption": None, "number_caption": 7}
    images = {
        "truncated_image": picture(99)[: len(picture(99)) // 2],
        "not_an_image": b"<html>404</html>" * 9,
        "empty_image": b"",
        "too_wide": picture(98, "JPEG", (64, 16)),
        "image_missing": None,
    }
    if fault in images:
        sample.image = images[fault]
    elif fault in values:
        sample.caption = values[fault]
        if sample.folder:  # else the caption is the recaptions'
            sample.document = json.dumps(sample.fields | {own_key: values[fault]}).encode()
    elif fault == "caption_missing":
        sample.document = None
    elif fault == "no_caption_key":
        sample.document = b'{"text": "here?", "Caption": "or here?"}'
    elif fault == "not_json":
        sample.document = (sample.document or b"")[:-1]
    elif fault == "not_an_object":
        sample.document = b"[" + (sample.document or b"") + b"]"
    elif fault == "utf16":
        sample.document = (sample.document or b"").decode().encode("utf-16")
    elif fault == "bom":
        sample.document = b"\xef\xbb\xbf" + (sample.document or b"")
    elif fault == "surrogate":
        sample.caption, sample.row_caption = "half \ud83d of it", "half \ufffd of it"
        sample.document = json.dumps(sample.fields | {own_key: sample.caption}).encode()
        if not sample.folder:  # Parquet holds no surrogates
            sample.caption = sample.row_caption
    elif fault == "rewritten":
        sample.older = picture(97)
    elif fault == "duplicate":
        sample.listed = 2
    elif fault == "unlisted":
        extra = _Sample(sample.folder, f"{sample.name}x", ".jpg", picture(96), None, {}, document=None, listed=0)
        group.insert(group.index(sample) + 1, extra)
    elif fault == "stem_twin":
        sample.keeps_ending = True
        twin = _Sample(sample.folder, sample.name, ".gif", picture(95, "GIF"), "The twin.", {}, keeps_ending=True)
        twin.json_name = f"{sample.name}_gif"
        twin.row_caption = twin.caption
        twin.document = json.dumps({own_key: twin.caption}).encode()
        group.insert(group.index(sample) + 1, twin)


def _is_row(sample: _Sample) -> bool:
    return bool(sample.listed) and sample.reason is None


def _in_order(groups: list[list[_Sample]]) -> list[_Sample]:
    return [sample for group in groups for sample in sorted(group, key=lambda sample: sample.path)]


def _text(sample: _Sample, layout: str) -> str:
    if layout.startswith("img2dataset"):
        merged = json.dumps(json.loads(sample.document or b"") | _recaption(sample, layout), ensure_ascii=False)
        return merged.encode("utf-8", "backslashreplace").decode()  # half an emoji stays the escape that it was
    return (sample.document or b"").decode("utf-8-sig")


def _write_tars(folder: Path, groups: list[list[_Sample]], layout: str, *, cut: bool) -> None:
    flat, beside = layout.startswith("img2dataset"), layout == "openuni"
    captions = []
    for number, group in enumerate(groups):
        tar = _Tar(folder / f"{number:05d}.tar" if flat else folder / "raw" / f"{number:05d}.tar")
        tar.folder = "" if flat else f"{number:05d}"
        for sample in sorted(group, key=lambda sample: sample.path):
            if sample.older is not None:
                tar.members.append((sample.path, sample.older))
            if sample.image is not None:
                tar.members.append((sample.path, sample.image))
            if (beside or flat) and sample.document is not None:
                tar.members.append((sample.json_path, sample.document))
            if flat:
                tar.members.append((f"{sample.name}.txt", b"alt text"))
        last = [name for name, _ in tar.members].index(group[-1].path)
        offset, size = tar.write()[last]
        if cut and group is groups[-1]:
            with tar.path.open("r+b") as handle:
                handle.truncate(offset + size // 2)
        captions.append([(s.json_path, s.document) for s in group if s.document is not None])
    if beside or flat:
        return
    if layout == "scattered":
        everything = [member for members in captions for member in members]
        random.Random(0).shuffle(everything)
        half = len(everything) // 2
        _Tar(folder / "captions" / "part-b.tar", "", everything[:half]).write()
        _Tar(folder / "captions" / "part-a.tar", "", everything[half:]).write()
        return
    for number, members in enumerate(captions):
        _Tar(folder / "captions" / f"{number:05d}.tar", f"{number:05d}", members).write()


def _write_files(folder: Path, samples: list[_Sample]) -> None:
    for sample in samples:
        for side, path, data in (("raw", sample.path, sample.image), ("captions", sample.json_path, sample.document)):
            if data is not None:
                (folder / side / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / side / path).write_bytes(data)


def _write_listing(path: Path, samples: list[_Sample]) -> None:
    path.write_text(json.dumps([{"image": sample.path, "annotation": sample.json_path} for sample in samples]))


def _recaption(sample: _Sample, layout: str) -> dict[str, Any]:
    name = "url" if layout == "img2dataset" else "key"
    return {name: sample.fields[name], "re_caption": sample.caption}


def _write_recaptions(path: Path, samples: list[_Sample], layout: str) -> str:
    rows = [_recaption(sample, layout) for sample in samples]
    columns = {name: pa.array([row[name] for row in rows], pa.string()) for name in rows[0]}
    pq.write_table(pa.table(columns), path)
    return str(path)
