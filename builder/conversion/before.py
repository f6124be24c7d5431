"""Checks before the work begins: the place of OUT, the caption's field, room on the disk."""

from __future__ import annotations

import os
import shlex
import shutil

from builder.base import schema
from builder.base.arrays import numbers_of
from builder.base.errors import OptionError, OutputError, SourceError
from builder.base.options import ConvertOptions
from builder.base.records import Reason
from builder.base.urls import is_url, join
from builder.base.words import size as in_words
from builder.plan.plan import Plan
from builder.plan.survey import Survey, stock_of
from builder.source.samples import read_samples

_LOOKED_AT = 1000  # annotations
_ENOUGH = 100
"""So many annotations must lack the usual fields before a conversion stops. With a field that the user named, one is
enough."""


def refuse_caption_key(survey: Survey, options: ConvertOptions) -> None:
    """Raises an error if none of the first annotations has the caption's field, as all would be rejected: OptionError
    for a field that the user named, else SourceError."""
    policy = options.policy
    missing, example = 0, ""
    for batch in survey.plan.rows.slice(0, _LOOKED_AT).combine_chunks().to_batches():
        for chunk in read_samples(batch, stock_of(survey, batch), policy, with_images=False):
            if chunk.samples:
                return
            for reject in chunk.rejects:
                if reject.reason is not Reason.CAPTION_INVALID:
                    return  # its caption was read
                if reject.detail.startswith("no field "):
                    missing, example = missing + 1, reject.detail
    named = policy.caption_key != "auto"
    if missing >= (1 if named else _ENOUGH):
        none = f"none of the first {missing:,} annotations has a caption"
        way_out = "Name the caption's field: --caption-key NAME"
        if named:
            raise OptionError("caption_key", policy.caption_key, f"{none} there ({example}). {way_out}")
        raise SourceError(f"{none}: {example}. {way_out}")


def bytes_of(plan: Plan, shards: list[int], names: tuple[str, ...] = ("size", "annotation_size")) -> int:
    """About how much disk space shards take: the bytes of their images and annotations."""
    columns = [numbers_of(plan.rows.column(name)) for name in names]
    rows = [slice(plan.bounds[number], plan.bounds[number + 1]) for number in shards]
    return sum(int(column[some].clip(0).sum()) for column in columns for some in rows)


def rows_of(plan: Plan, shards: list[int]) -> int:
    """Number of rows planned for shards."""
    return sum(plan.bounds[number + 1] - plan.bounds[number] for number in shards)


def free_bytes(out: str) -> int | None:
    """Free bytes on the file system of OUT, which need not exist yet. None if the system does not say."""
    place = os.path.abspath(out)
    while not os.path.exists(place) and place != os.path.dirname(place):
        place = os.path.dirname(place)
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None


def refuse_full_disk(out: str, needed: int) -> None:
    """Raises OutputError if ``needed`` bytes do not fit on OUT's file system."""
    free = free_bytes(out)
    if free is not None and needed > free:
        raise OutputError(
            f"{shlex.quote(out)} needs {in_words(needed)}, but its disk has {in_words(free)} free. Make room, choose "
            "another OUT, or push shards while they are made: --push-to USER/NAME --delete-pushed."
        )


def refuse_overlap(source: str, out: str, *, beside: bool = False) -> None:
    """Raises SourceError if OUT lies in a part of the source that is read, or that an index is in. Also if it is the
    source itself, unless ``beside``. Links are followed."""
    parts = [join(source, name) for name in ("raw", "captions", "data.json", schema.META)]
    whole = [] if beside else [source]
    if not is_url(source):
        whole.append(join(source, schema.DATA))  # with an index's meta/ beside it
    if lies_in(out, *parts) or _real(out) in map(_real, whole):
        raise SourceError(f"{shlex.quote(out)} lies in the source {shlex.quote(source)}. Choose an OUT outside of it.")


def lies_in(out: str, *places: str) -> bool:
    """Whether OUT is one of the places, or lies in one. Links are followed."""
    return any(f"{_real(out)}/".startswith(f"{_real(place)}/") for place in places)


def _real(place: str) -> str:
    return place.rstrip("/") if is_url(place) else os.path.realpath(place)
