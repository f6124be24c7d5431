"""Options as small frozen values that check themselves. Every default stands here with its reason."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, TypedDict

from builder.base.errors import OptionError
from builder.base.paths import StrPath, path_of, paths_of
from builder.base.words import did_you_mean

MAX_PIXELS = 178_956_970
"""Pillow refuses larger images as decompression bombs (2 × its MAX_IMAGE_PIXELS of 89,478,485)."""

GROUP_BYTES = 100_000_000
"""The most bytes of a row group, unless one row is larger. The Hub's viewer gives up on row groups of 300,000,000
bytes."""

PAGE_BYTES = 512 * 1024
"""An image page ends with the first row that fills it to this size. A reader that follows the page index to one image
reads about half a MiB. Smaller pages slow down full scans (measured with pyarrow: 64 KiB doubles their time)."""

MAX_IMAGE_BYTES = 256 << 20  # 256 MiB
"""A larger member is rejected as image_too_large and never read into memory. This keeps a process under its memory
limit."""

MAX_ANNOTATION_BYTES = 32 << 20  # 32 MiB
"""A larger annotation is rejected as caption_invalid, for the same reason."""

_UNITS = {"": 1, "B": 1, "K": 10**3, "KB": 10**3, "M": 10**6, "MB": 10**6, "G": 10**9, "GB": 10**9}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str | int, name: str = "max_shard_size") -> int:
    """Bytes from ``"500MB"`` (10^6), ``"64MiB"`` (2^20) or a plain number. Raises OptionError for option ``name``."""
    match = re.fullmatch(r"\s*(\d{1,18})(?:\.(\d{1,18}))?\s*([A-Za-z]*)\s*", str(text))
    if not match or match[3].upper() not in _UNITS:
        raise OptionError(name, text, "give a number of bytes, or a size such as 500MB or 64MiB")
    whole, decimals = match[1], match[2] or ""
    return int(whole + decimals) * _UNITS[match[3].upper()] // int("1" + "0" * len(decimals))


def check_number(name: str, value: Any, allowed: str, kind: type = Real, least: float | None = None) -> None:
    """Raises OptionError unless ``value`` is a number of ``kind`` (a class of Python's ``numbers``), ``least`` or more.
    A bool is none; nor is text, which a config or a shell may give in place of a number."""
    if isinstance(value, bool) or not isinstance(value, kind):
        what = "a whole number" if kind is Integral else "a number"
        raise OptionError(name, value, f"not {what}. {allowed[:1].upper()}{allowed[1:]}")
    if least is not None and value < least:  # type: ignore[operator]  # a number of any kind
        raise OptionError(name, value, allowed)


@dataclass(frozen=True, slots=True)
class SamplePolicy:
    """Which samples become rows, and which field holds their caption.

    ``caption_key``: ``auto`` takes ``re_caption``, else ``caption``. Any other value is the name of the field.
    ``max_aspect_ratio``: the largest longer side ÷ shorter side allowed. 0 turns the check off. 3.0 is the source's
    own. ``min_side``: the smallest shorter side allowed, in pixels. None turns the check off. ``max_pixels``: the
    largest width × height allowed."""

    caption_key: str = "auto"
    max_aspect_ratio: float = 3.0
    min_side: int | None = None
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if not self.caption_key:
            raise OptionError("caption_key", self.caption_key, "give a field's name, or auto")
        allowed = "give 1 or more, or 0 for no limit"
        check_number("max_aspect_ratio", self.max_aspect_ratio, allowed)
        if not (self.max_aspect_ratio == 0 or 1 <= self.max_aspect_ratio < float("inf")):
            raise OptionError("max_aspect_ratio", self.max_aspect_ratio, allowed)
        if self.min_side is not None:
            check_number("min_side", self.min_side, "give 1 or more, or leave it out for no limit", least=1)
        check_number("max_pixels", self.max_pixels, "give 1 or more", least=1)


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """The options that decide the bytes of the output. Options that only change the speed (processes, engine) are not
    here.

    ``max_shard_size``: bytes, or text such as "500MB". ``recaptions``: paths of files or folders, or one path.
    """

    format: str = "parquet"
    policy: SamplePolicy = field(default_factory=SamplePolicy)
    max_shard_size: int = 500_000_000
    recaptions: tuple[str, ...] = ()
    """Files with captions, or folders of such files. They are joined with the images."""
    on: str | None = None
    """What joins recaptions with images: a field of the sidecars (``url``, ``sha256``), or ``key``. Write
    ``FIELD=COLUMN`` if the recaptions use another name. None: ``url`` if the recaptions have one, else ``key``."""
    listing: str | bool | None = None
    """A file to read as data.json. False: read none. None: read the source's own, if it has one."""
    limit: int | None = None
    """The most samples to take, from the start of the plan. None: all."""

    def __post_init__(self) -> None:
        if self.format not in ("parquet", "arrow", "webdataset"):
            raise OptionError("format", self.format, "give parquet, arrow or webdataset")
        object.__setattr__(self, "max_shard_size", parse_size(self.max_shard_size))
        if self.max_shard_size < 1_000_000:
            raise OptionError("max_shard_size", self.max_shard_size, "give 1MB or more")
        object.__setattr__(self, "recaptions", paths_of(self.recaptions))
        if self.on is not None and (not self.on or not self.recaptions):
            raise OptionError("on", self.on, "give it with recaptions: a field of the sidecars, or FIELD=COLUMN")
        if self.limit is not None:
            check_number("limit", self.limit, "give 1 or more", Integral, least=1)
        if self.listing is True:
            raise OptionError("listing", True, "give a file, or False for none")
        if self.listing is not None and self.listing is not False:
            object.__setattr__(self, "listing", path_of(self.listing))

    def to_json(self) -> dict[str, Any]:
        """Plain values for the manifest and the ledger."""
        document = {**asdict(self), "recaptions": [os.path.basename(path.rstrip("/")) for path in self.recaptions]}
        if isinstance(self.listing, str):
            document["listing"] = os.path.basename(self.listing.rstrip("/"))
        for name in ("on", "listing", "limit"):  # left out if unset, so that old manifests stay the same
            if document[name] is None:
                del document[name]
        return document


class OptionFields(TypedDict, total=False):
    """Options that ``convert``, ``index`` and ``load_dataset`` take by name: those of ConvertOptions and
    SamplePolicy."""

    format: str
    max_shard_size: int | str
    recaptions: StrPath | Iterable[StrPath]
    on: str | None
    listing: StrPath | bool | None
    limit: int | None
    caption_key: str
    max_aspect_ratio: float
    min_side: int | None
    max_pixels: int


def options_by_name(options: ConvertOptions | None, named: Mapping[str, Any]) -> ConvertOptions:
    """Options given by name, over ``options`` or the defaults. Raises OptionError, or TypeError for an unknown name."""
    options = options or ConvertOptions()
    policy = {field.name for field in fields(SamplePolicy)}
    own = {field.name for field in fields(ConvertOptions)} - {"policy"}
    for name in named:
        if name not in policy | own:
            raise TypeError(f"there is no option {name}.{did_you_mean(name, policy | own)}")
    changed = replace(options.policy, **{name: value for name, value in named.items() if name in policy})
    return replace(options, policy=changed, **{name: value for name, value in named.items() if name in own})


@dataclass(frozen=True, slots=True)
class Slice:
    """The range of the sorted raw tars that a run takes. ``start`` is inclusive, ``end`` exclusive; -1 means to the
    last."""

    start: int = 0
    end: int = -1

    def __post_init__(self) -> None:
        if self.start < 0:
            raise OptionError("start", self.start, "give 0 or more")
        if self.end != -1 and self.end < self.start:
            raise OptionError("end", self.end, f"give -1, or {self.start} (start) or more")

    def of(self, count: int) -> range:
        """The numbers of the tars taken, out of ``count``. Empty if the slice begins behind the last."""
        return range(min(self.start, count), count if self.end == -1 else min(self.end, count))

    def require(self, count: int, what: str = "raw tars") -> None:
        """Raises OptionError if the slice begins behind the last of ``count``."""
        if self.start and self.start >= count:
            there = f"{count:,} {what}, numbered 0 to {count - 1}" if count else f"no {what}"
            raise OptionError("start", self.start, f"there are {there}")


def default_num_proc() -> int:
    """How many cores this process may use: its affinity mask, not the machine's total."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
