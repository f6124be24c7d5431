"""demo: make a small source → convert → verify → read. Offline, in a few seconds."""

from __future__ import annotations

import io
import json
import os
import shlex
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from builder.base.errors import OutputError
from builder.base.names import DEMO
from builder.base.options import default_num_proc
from builder.base.paths import StrPath, path_of
from builder.base.words import counted
from builder.conversion.convert import convert
from builder.conversion.report import describe_summary
from builder.conversion.summary import Summary
from builder.jobs.demo_images import draw, wide
from builder.read.opening import open_dataset
from builder.read.view import Rows
from builder.source.endings import stem_of
from builder.store.output import make_folder, write_file
from builder.verification.verify import Verification, describe_verification, verify

_MARK = "demo.json"
_SHARDS, _PER_SHARD = 4, 75


@dataclass(frozen=True, slots=True)
class Demo:
    """The demo's results. ``expected``: rejects by reason that the source was made to have."""

    path: str
    converted: Summary
    verified: Verification
    expected: dict[str, int]
    seconds: float

    @property
    def ok(self) -> bool:
        return self.verified.ok and self.converted.totals.rejected == self.expected

    def to_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "ok": self.ok,
            "path": self.path,
            **self.converted.to_json(),
            "problems": list(self.verified.problems),
            "seconds": round(self.seconds, 3),
        }


def demo(folder: StrPath | None = None, *, say: Callable[[str], None] = lambda text: None) -> Demo:
    """Make FOLDER/source (card layout, 300 images, some bad on purpose), convert it to FOLDER/out, verify OUT against
    the source and read it back. ``say`` gets a message for each step.

    A folder of an earlier demo is used again. Raises OutputError if the folder holds anything else.
    """
    started = time.monotonic()
    folder = path_of(folder or DEMO)
    source, out = os.path.join(folder, "source"), os.path.join(folder, "out")
    workers = min(2, default_num_proc())
    expected = _prepare(folder, source)
    say(f"1. A source as it is downloaded: {source}\n{_tree(source)}")
    summary = convert(source, out, num_proc=workers, quiet=True)
    command = shlex.join(["laion6m", "convert", source, out])
    say(f"\n2. {command}\n{_indented(_without_next(describe_summary(summary)))}")
    proof = verify(out, source=source, num_proc=workers, quiet=True)
    command = shlex.join(["laion6m", "verify", out, "--source", source])
    say(f"\n3. {command}\n{_indented(describe_verification(proof))}")
    say(f"\n4. Reading it back\n{_indented(_rows(open_dataset(out), out))}")
    say(f"\n{_following(source, out)}")
    return Demo(folder, summary, proof, expected, time.monotonic() - started)


def _prepare(folder: str, source: str) -> dict[str, int]:
    """Make the source unless it exists. Returns its rejects by reason."""
    mark = os.path.join(folder, _MARK)
    if os.path.exists(mark):
        with open(mark, encoding="utf-8") as handle:
            text = handle.read()
        try:
            expected: dict[str, int] = json.loads(text)["rejected"]
        except (ValueError, KeyError, TypeError):
            raise OutputError(
                f"{shlex.quote(mark)} was changed. Remove {shlex.quote(folder)}, or give another folder."
            ) from None
        return expected
    if os.path.isdir(folder) and os.listdir(folder):
        raise OutputError(
            f"{shlex.quote(folder)} is not empty, and no demo made it. Give another folder: laion6m demo DIR"
        )
    make_folder(os.path.join(source, "raw"))
    make_folder(os.path.join(source, "captions"))
    expected = _write_source(source)
    write_file(mark, [json.dumps({"rejected": expected}).encode()])
    return expected


def _write_source(source: str) -> dict[str, int]:
    listing: list[dict[str, str]] = []
    for shard in range(_SHARDS):
        images: dict[str, bytes] = {}
        annotations: dict[str, bytes] = {}
        for number in range(shard * _PER_SHARD, (shard + 1) * _PER_SHARD):
            data, ending, caption = draw(number)
            path = f"{shard:05d}/{number:09d}{ending}"
            images[path] = data
            fields = {"caption": caption, "url": f"https://example.org/{number}{ending}", "similarity": 0.3}
            annotations[f"{stem_of(path)}.json"] = json.dumps(fields).encode()
            listing.append({"image": path, "annotation": f"{stem_of(path)}.json"})
        _spoil(shard, listing, images, annotations)
        _write_tar(os.path.join(source, "raw", f"{shard:05d}.tar"), f"{shard:05d}", images)
        _write_tar(os.path.join(source, "captions", f"{shard:05d}.tar"), f"{shard:05d}", annotations)
    write_file(os.path.join(source, "data.json"), [json.dumps(listing).encode()])
    return {
        "image_missing": 1,
        "caption_missing": 1,
        "caption_invalid": 2,
        "image_unreadable": 1,
        "image_truncated": 2,
        "aspect_ratio": 2,
        "duplicate": 1,
    }


def _spoil(shard: int, listing: list[dict[str, str]], images: dict[str, bytes], annotations: dict[str, bytes]) -> None:
    """Add the usual problems of web images, a few of each kind."""
    mine = [entry for entry in listing if entry["image"] in images]
    if shard == 0:
        images[mine[10]["image"]] = images[mine[10]["image"]][:-200]
        images[mine[11]["image"]] = b"<html><body>404 Not Found</body></html>"
        images[f"{shard:05d}/not-listed.jpg"] = wide(0)
    elif shard == 1:
        del images[mine[20]["image"]]
        del annotations[mine[30]["annotation"]]
        images[mine[40]["image"]] = wide(1)
    elif shard == 2:
        annotations[mine[12]["annotation"]] = b'{"caption": "  "}'
        annotations[mine[22]["annotation"]] = b'{"caption": "cut he'
        images[mine[52]["image"]] = wide(2)
    else:
        images[mine[60]["image"]] = images[mine[60]["image"]][:700]
        listing.append(dict(mine[0]))


def _write_tar(path: str, folder: str, members: dict[str, bytes]) -> None:
    """Write a tar as ``tar -cf 00000.tar 00000`` does."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.GNU_FORMAT) as tar:
        head = tarfile.TarInfo(folder)
        head.type, head.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(head)
        for name, data in sorted(members.items()):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    write_file(path, [sink.getvalue()])


def _tree(source: str) -> str:
    lines = []
    for name in sorted(os.listdir(source)):
        inside = os.path.join(source, name)
        if os.path.isdir(inside):
            tars = sorted(os.listdir(inside))
            lines.append(f"   {name + '/':<11}{tars[0]} … {tars[-1]}")
        else:
            lines.append(f"   {name:<11}{os.path.getsize(inside):,} bytes: which caption belongs to which image")
    return "\n".join(lines)


def _rows(reader: Rows, out: str) -> str:
    lines = ["from builder import open_dataset", f"ds = open_dataset({out!r})    # {counted(len(reader), 'row')}"]
    for row in (0, len(reader) // 2, len(reader) - 1):
        sample = reader[row]
        image = f"{sample.width} x {sample.height}, {len(sample.image):,} bytes"
        lines += [f"ds[{row}]".ljust(9) + f"{sample.key}  {image}", " " * 9 + sample.caption]
    return "\n".join(lines)


def _following(source: str, out: str) -> str:
    code = f'import datasets; print(datasets.load_dataset({json.dumps(out)}, split="train"))'
    return "\n".join(
        [
            "Next:",
            f"   laion6m info {shlex.quote(out)}",
            f"   laion6m index {shlex.quote(source)}            # the same rows without a copy",
            f"   python -c {shlex.quote(code)}",
            "   laion6m convert YOUR/laion6m OUT   # your own download",
        ]
    )


def _without_next(text: str) -> str:
    return text.split("\nnext:", 1)[0]


def _indented(text: str) -> str:
    return "\n".join(f"   {line}" for line in text.splitlines())
