"""What files and folders are called on disk."""

from __future__ import annotations

META = "meta"
DATA = "data"
WORK = ".laion6m"
PLAN = "plan.json"  # in WORK: where it is, there is a plan
INDEX = f"{META}/index.arrow"
REJECTS = f"{META}/rejects.parquet"
MANIFEST = f"{META}/manifest.json"
CARD = "README.md"
