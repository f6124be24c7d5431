"""Tars made of names, looked over, for tests of what is done with scans."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from builder.plan.pairs import join
from builder.plan.plan import Plan, plan_joined
from builder.source.layout import Archive, Layout
from builder.source.listing import Listing
from builder.source.scan import ScanRequest, scan_archive
from builder.source.tables import ArchiveTable


def archive(path: Path) -> Archive:
    """A tar, or a folder that stands for one."""
    status = path.stat()
    if path.is_dir():
        return Archive(path.name, str(path), True, 0, 0)
    return Archive(path.name, str(path), False, status.st_size, status.st_mtime_ns)


def scanned(path: Path, members: dict[str, bytes] | list[str], *, field: str = "", names: bool = True) -> ArchiveTable:
    """A tar of these members, looked over."""
    contents = members if isinstance(members, dict) else dict.fromkeys(members, b"{}")
    with tarfile.open(path, "w") as tar:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return scan_archive(ScanRequest(archive(path), names, field))


def entries(listing: Listing) -> list[tuple[str, str]]:
    return list(zip(listing.images.to_pylist(), listing.annotations.to_pylist(), strict=True))


def plan_of_tables(
    layout: Layout, listing: Listing, raw: Sequence[ArchiveTable], captions: Sequence[ArchiveTable], max_shard_size: int
) -> Plan:
    """What surveying a source comes to. ``captions``: tables of ``layout.annotations``."""
    mine = list(raw)  # joining takes the ids out of a list's tables
    annotations = mine if captions is raw else list(captions)
    return plan_joined(layout, listing, join(listing, mine, annotations), mine, annotations, max_shard_size)
