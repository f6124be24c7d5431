"""Rows streamed from remote tars. Each raw tar and the captions tar of the same name are read once, from the front.

There is no plan: a plan needs every header of every tar. There is no listing either: every annotation counts as a
listed sample.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass

import pyarrow as pa

from builder.base.options import MAX_ANNOTATION_BYTES, MAX_IMAGE_BYTES, SamplePolicy
from builder.base.records import WHOLE, Damage, Member, Reason, SampleProblem
from builder.base.words import counted
from builder.hf.units import Planned, Unit, tables_of
from builder.source.captions import read_annotation
from builder.source.endings import IMAGE_ENDINGS, is_companion, stem_of
from builder.source.files import ByteFile
from builder.source.images import judge, probe
from builder.source.layout import Archive, Layout
from builder.source.scan import open_archive
from builder.source.tar_headers import Link, resolve_links
from builder.source.tars import walk_tar
from builder.store.shards import TextRow

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PairUnit:
    """A raw tar and its captions tar."""

    raw: Archive
    captions: Archive

    def tables(self, policy: SamplePolicy, rejected: Counter[str]) -> Iterator[pa.Table]:
        """Yield images in the order of the tar. A caption without an image is counted and logged."""
        return tables_of(self._rows(policy, rejected))

    def _rows(self, policy: SamplePolicy, rejected: Counter[str]) -> Iterator[tuple[TextRow, bytes]]:
        with ExitStack() as stack:
            documents = _documents(stack.enter_context(closing(open_archive(self.captions))))
            raw = stack.enter_context(closing(open_archive(self.raw)))
            damage: list[Damage] = []
            for member in _members(raw, damage):
                stem = stem_of(member.name)
                is_image = member.name.lower().endswith(IMAGE_ENDINGS) and not is_companion(member.name)
                if stem not in documents or not is_image:
                    continue
                document = documents.pop(stem)
                try:
                    if isinstance(document, SampleProblem):
                        raise document
                    image = _read(raw, member, MAX_IMAGE_BYTES, Reason.IMAGE_TOO_LARGE)
                    caption, annotation, _ = read_annotation(document, policy.caption_key)
                    info = probe(image, 0, len(image))
                    judge(info, policy)
                except SampleProblem as problem:
                    rejected[problem.reason.value] += 1
                    continue
                yield TextRow(stem, member.name, caption, info.width, info.height, annotation), image
        _warn_of(damage, self.raw.path)
        if documents:
            reason = Reason.TAR_DAMAGED if damage else Reason.IMAGE_MISSING
            rejected[reason.value] += len(documents)
            _log.warning(
                "%s of %s without an image in %s, such as %s. The stream has no rows for them.",
                *(counted(len(documents), "caption"), self.captions.path, self.raw.path, next(iter(documents))),
            )


def plan_pairs(layout: Layout) -> Planned:
    """One unit for each pair of tars with the same name. Each tar without a partner gets a remark."""
    raw, captions = ({archive.name: archive for archive in side} for side in (layout.raw, layout.captions))
    units: list[Unit] = [PairUnit(raw[name], captions[name]) for name in raw if name in captions]
    remarks = [f"{raw[name].path} is left out: no captions tar has its name" for name in raw if name not in captions]
    remarks += [f"{captions[name].path} is left out: no raw tar has its name" for name in captions if name not in raw]
    return Planned(units, None, None, Counter(), tuple(remarks))


def _documents(file: ByteFile) -> dict[str, bytes | SampleProblem]:
    """Path without extension → annotation, for all of a captions tar (about 15 MB). On duplicate paths the last
    wins."""
    documents: dict[str, bytes | SampleProblem] = {}
    damage: list[Damage] = []
    for member in _members(file, damage):
        if member.name.lower().endswith(".json") and not is_companion(member.name):
            try:
                document: bytes | SampleProblem = _read(file, member, MAX_ANNOTATION_BYTES, Reason.CAPTION_INVALID)
            except SampleProblem as problem:
                document = problem
            documents[stem_of(member.name)] = document
    _warn_of(damage, file.name)
    return documents


def _warn_of(damage: list[Damage], name: str) -> None:
    if damage:
        where = damage[0]
        _log.warning("%s is damaged: bytes %d to %d: %s", name, where.offset, where.end, where.problem)


def _members(file: ByteFile, damage: list[Damage]) -> Iterator[Member]:
    """Yield members in file order. Links to other members come last: a link may point forward."""
    entries: list[Member | Link] = []
    links: set[str] = set()
    for found in walk_tar(file):
        if isinstance(found, Damage):
            damage.append(found)
            continue
        entries.append(found)
        if isinstance(found, Link):
            links.add(found.name)
        else:
            yield found
    if links:
        yield from (member for member in resolve_links(entries) if member.name in links)


def _read(file: ByteFile, member: Member, most: int, too_large: Reason) -> bytes:
    if member.state != WHOLE:
        raise SampleProblem(Reason.TAR_DAMAGED, f"{member.name} is cut off or stored sparse")
    if member.size > most:
        raise SampleProblem(too_large, f"{member.size:,} bytes are more than the {most:,} read")
    data = file.read_at(member.offset, member.size)
    if len(data) < member.size:
        raise SampleProblem(Reason.TAR_DAMAGED, f"{member.name} is cut off")
    return data
