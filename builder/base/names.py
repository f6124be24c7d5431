"""The names of files and folders on disk, and which names are allowed."""

from __future__ import annotations

META = "meta"
DATA = "data"
WORK = ".laion6m"
PLAN = "plan.json"  # in WORK; it exists only if there is a plan
INDEX = f"{META}/index.arrow"
REJECTS = f"{META}/rejects.parquet"
MANIFEST = f"{META}/manifest.json"
CARD = "README.md"
SELECTION = f"{META}/selection.json"
ROWS = f"{META}/rows.arrow"
DEMO = "laion6m-demo"  # the folder of demo, unless another is given


def is_utf8(text: str) -> bool:
    """Whether the text can be encoded as UTF-8. A file name in another encoding has lone surrogates in Python."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
