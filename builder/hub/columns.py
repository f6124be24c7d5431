"""Added columns of a dataset, as files to push: each is a configuration of its own in the repository."""

from __future__ import annotations

import os
import re
import shlex

from builder.base import schema
from builder.base.errors import IndexMismatchError, OutputError
from builder.hub.items import Item, local_item
from builder.read.columns import Column, check_name, column_checksums, columns_of, open_any, read_checksums

_FILES = re.compile(
    rf"columns/(?P<data>\w+)/{schema.SPLIT}-\d{{5}}-of-\d{{5}}\.parquet|{schema.META}/columns/(?P<meta>\w+)\.(arrow|json)"
)


def is_column_file(path: str) -> bool:
    """Whether a file of a repository is part of a column that a push wrote."""
    return _FILES.fullmatch(path) is not None


def column_items(out: str) -> tuple[dict[str, Item], dict[str, str]]:
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
            items[path] = local_item(path, os.path.join(out, *path.split("/")), digests[path], checked=True)
        items[checksums] = local_item(checksums, column_checksums(out, name), "")
    return items, kinds
