"""What a push sends of a converted folder: its files, and the facts for its card."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from builder.base import schema
from builder.base.errors import DamagedFileError, IndexMismatchError, OutputError
from builder.base.names import ROWS, SELECTION
from builder.base.words import counted
from builder.curate.thumbnails import COLLAGE, make_collage
from builder.hub.items import Item, local_item
from builder.read.columns import Column, check_name, column_checksums, columns_of, open_any, read_checksums
from builder.read.index import Index
from builder.read.reader import Reader
from builder.store.card import Facts, features_of
from builder.store.manifest import Manifest
from builder.store.output import write_file
from builder.store.pushed import PushedMark, PushRecords

SAVED_DATASET = ("state.json", "dataset_info.json")
"""Files of --format arrow beside data/. Other tools write files with these names too."""

_SUFFIXES = tuple(schema.SUFFIXES.values())
_COLUMN_FILES = re.compile(
    rf"columns/\w+/{schema.SPLIT}-\d{{5}}-of-\d{{5}}\.parquet|{schema.META}/columns/\w+\.(arrow|json)"
)


@dataclass(frozen=True, slots=True)
class Parcel:
    """``items``: files by path in the repository, shards first, without the card. ``card``: its path here."""

    items: Mapping[str, Item]
    facts: Facts
    card: str

    @property
    def rows(self) -> int:
        return int(self.facts.totals["rows"])


def dataset_parcel(out: str, manifest: Manifest, repo: str, revision: str, *, columns: bool = True) -> Parcel:
    """Everything of a converted folder. Shards that were deleted after a push to ``repo`` need not be here.
    ``columns``: with the added ones.

    Raises OutputError if a file is missing or the number of rows contradicts the manifest; DamagedFileError.
    """
    if manifest.kind not in schema.SUFFIXES:
        raise OutputError(
            f"{shlex.quote(out)} is an index over tars, and an index holds no images. Convert the source with laion6m "
            "convert, then push the result."
        )
    records = PushRecords(out)
    items = {}
    for path, noted in sorted(manifest.files.items(), key=lambda entry: (not is_shard(entry[0]), entry[0])):
        if path != schema.CARD:
            name = shard_of(path)
            mark = records.mark(name.number, repo, revision) if name else None
            items[path] = _item(out, path, noted["xxh3_128"], mark)
    items[schema.MANIFEST] = _item(out, schema.MANIFEST, "", None)
    added, kinds = _column_items(out) if columns else ({}, {})
    items |= added
    index = Index(os.path.join(out, schema.INDEX), out)
    rows = sum(_rows(items[file.path], file.rows) for file in index.header.files)
    check_rows(out, manifest, rows)
    text = int(index.column("annotation_size").sum()) if rows else 0
    facts = Facts(
        totals=manifest.totals,
        options=manifest.options,
        versions=manifest.versions,
        num_bytes=manifest.totals["image_bytes"] + 2 * text,
        download_size=sum(item.size for item in items.values() if is_shard(item.path)),
        features=features_of(manifest.options),
        columns=kinds,
    )
    return Parcel(items, facts, os.path.join(out, schema.CARD))


def check_rows(out: str, manifest: Manifest, rows: int) -> None:
    """Raises OutputError if the shards' ``rows`` are not as many as the manifest says."""
    if rows != manifest.totals["rows"]:
        place = shlex.quote(out)
        raise OutputError(
            f"{place} has {counted(rows, 'row')} in its shards, but its manifest says {manifest.totals['rows']:,}. Run "
            f"laion6m verify {place}. It says what is wrong, and what to do."
        )


def with_collage(parcel: Parcel, out: str) -> Parcel:
    """The parcel with a picture of 24 rows for the card. Unchanged if the rows cannot be read or drawn."""
    data = make_collage(Reader(os.path.join(out, schema.INDEX), out))
    if data is None:
        return parcel
    file = os.path.join(out, schema.WORK, "collage.jpg")
    write_file(file, [data])
    return replace(parcel, items={**parcel.items, COLLAGE: local_item(COLLAGE, file, "")})


def is_shard(path: str) -> bool:
    return path.startswith(f"{schema.DATA}/")


def shard_of(path: str) -> schema.ShardName | None:
    """A shard's name, from its path in the repository. None for any other file."""
    return schema.ShardName.parse(os.path.basename(path)) if is_shard(path) else None


def is_ours(path: str) -> bool:
    """Whether a push may write or remove this file of a repository.

    These files are ours: meta/ with the card's picture, added columns, the split's shards (the card's pattern matches
    them), and bookkeeping that ``hf upload`` or git brought there."""
    if path in (schema.INDEX, schema.REJECTS, schema.MANIFEST, SELECTION, ROWS, COLLAGE):
        return True
    if path.startswith(f"{schema.WORK}/") or _COLUMN_FILES.fullmatch(path):
        return True
    folder, _, name = path.rpartition("/")
    return folder == schema.DATA and name.startswith(f"{schema.SPLIT}-") and name.endswith(_SUFFIXES)


def _column_items(out: str) -> tuple[dict[str, Item], dict[str, str]]:
    """The files of all added columns by path, and of each column what its rows hold, in words.

    Raises OutputError for a column that was made for another index than the one that is there, or has files missing;
    DamagedFileError.
    """
    items: dict[str, Item] = {}
    kinds: dict[str, str] = {}
    for name in columns_of(out):
        check_name(name)
        try:
            column = open_any(out, name)
        except IndexMismatchError:
            raise OutputError(
                f"the column {name} of {shlex.quote(out)} is older than the dataset's last conversion. Add it again "
                "with laion6m add-column, delete its files in columns/ and meta/columns/, or push with "
                "--without-columns."
            ) from None
        kinds[name] = "array" if isinstance(column, Column) else str(column.column.type)
        checksums = f"{schema.META}/columns/{name}.json"
        digests = read_checksums(out, name)
        for path in sorted(digests):
            items[path] = local_item(path, os.path.join(out, path), digests[path], checked=True)
        items[checksums] = local_item(checksums, column_checksums(out, name), "")
    return items, kinds


def _item(out: str, path: str, digest: str, mark: PushedMark | None) -> Item:
    file = os.path.join(out, path)
    if not os.path.isfile(file):
        if mark is not None and (mark.path, mark.digest) == (path, digest):
            return Item(path, mark.size, sha256=mark.sha256, digest=digest)
        raise OutputError(f"{shlex.quote(file)} is missing. Run the same laion6m convert command again to make it.")
    return local_item(path, file, digest, checked=bool(digest))


def _rows(item: Item, noted: int) -> int:
    """Rows of a shard: from its footer if it has one, else from the index."""
    if not item.file or not item.path.endswith(".parquet"):
        return noted
    try:
        return int(pq.read_metadata(item.file).num_rows)
    except (pa.ArrowInvalid, OSError) as error:
        raise DamagedFileError(item.file, "footer", str(error)) from None
