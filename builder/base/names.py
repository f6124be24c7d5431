"""What files and folders are called on disk, and what they may be called."""

from __future__ import annotations

META = "meta"
DATA = "data"
WORK = ".laion6m"
PLAN = "plan.json"  # in WORK: where it is, there is a plan
INDEX = f"{META}/index.arrow"
REJECTS = f"{META}/rejects.parquet"
MANIFEST = f"{META}/manifest.json"
CARD = "README.md"
SELECTION = f"{META}/selection.json"
ROWS = f"{META}/rows.arrow"
DEMO = "laion6m-demo"  # where demo works, unless it is told another folder


def is_utf8(text: str) -> bool:
    """Whether it can be written down: a name that the system gave in another encoding has lone surrogates in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
