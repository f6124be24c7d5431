"""What datasets' own webdataset builder makes of tars whose captions lie in tars of their own.

    python examples/webdataset_loses_captions.py

Makes 20 pairs in the layout of wusize/laion6m in a temporary folder, then loads them twice.
"""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from pathlib import Path

import datasets
from PIL import Image

import builder


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def make_source(folder: Path, pairs: int) -> None:
    (folder / "raw").mkdir()
    (folder / "captions").mkdir()
    listing = []
    with (
        tarfile.open(folder / "raw/00000.tar", "w") as raw,
        tarfile.open(folder / "captions/00000.tar", "w") as captions,
    ):
        for number in range(pairs):
            key = f"00000/{number:09d}"
            image = io.BytesIO()
            Image.new("RGB", (64, 48), (number * 12, 99, 180)).save(image, "JPEG")
            add(raw, f"{key}.jpg", image.getvalue())
            add(captions, f"{key}.json", json.dumps({"caption": f"A flat colour, number {number}."}).encode())
            listing.append({"image": f"{key}.jpg", "annotation": f"{key}.json"})
    (folder / "data.json").write_text(json.dumps(listing))


def main() -> None:
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_source(folder, 20)
        cache = str(folder / "cache")

        tars = [str(folder / "raw/00000.tar"), str(folder / "captions/00000.tar")]
        rows = datasets.load_dataset("webdataset", data_files=tars, split="train", cache_dir=cache)
        print(f"webdataset: {len(rows)} rows of {rows.column_names}")

        rows = builder.load_dataset("laion6m.py", data_dir=name, split="train", cache_dir=cache)
        print(f"laion6m:    {len(rows)} rows of {rows.column_names}")
        print(f"            {rows[7]['key']}: {rows[7]['caption']!r}, {rows[7]['image'].size}")


if __name__ == "__main__":
    main()
