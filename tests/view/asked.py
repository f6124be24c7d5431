"""What tests of the viewer ask for, and somebody else's datasets to ask about."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pyarrow as pa
import pyarrow.parquet as pq

from tests.view.conftest import Visitor

HOSTILE = [
    "<script>document.title='pwned'</script>",
    '"><img src=x onerror=alert(1)>',
    "</title></style></textarea><svg onload=alert(1)>",
    "{{7*7}} ${7*7} <%= 7*7 %>",
    "\u202egpj.exe\u202c \u0000 \ufeff 👩‍👩‍👧‍👦 𝕊𝕦𝕣𝕣",
]


def get(visitor: Visitor, path: str, **given: object) -> Any:
    reply = visitor.ask(f"{path}?{urlencode(given)}")
    assert reply.status == 200, reply.body
    return reply.json


def rows(visitor: Visitor, **given: object) -> Any:
    """Of /api/rows, asked for until all are found."""
    while not (page := get(visitor, "/api/rows", limit=500, **given))["done"]:
        pass
    return page


def foreign(folder: Path, captions: list[str], images: list[bytes] | None = None) -> Path:
    """Somebody else's Parquet file, images as they are given."""
    from builder.jobs.demo_images import draw

    images = images or [draw(number)[0] for number, _ in enumerate(captions)]
    pictures = [{"bytes": data, "path": f"{number}.jpg"} for number, data in enumerate(images)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(pictures, kind), "caption": captions})
    (folder / "data").mkdir(exist_ok=True)
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False}
    pq.write_table(table, folder / "data" / "train-00000-of-00001.parquet", **options)
    return folder
