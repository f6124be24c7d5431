"""Hostile annotations, listings and recaptions by the thousand, through the whole conversion.

    python stress/fuzz_json.py [--trials 400] [--seconds 600] [--seed 6]

A trial is a card-layout source of 40 samples. Its annotations are drawn from a list of everything that JSON from the
web has been seen to be (not JSON, no object, no caption, surrogates, NUL, encodings, deep nesting, long captions …) or
are damaged at random; its data.json is as a person or a program may leave it (duplicates, absent tars, paths that lead
out, other keys), or is cut, flipped or of another shape altogether. What has to hold: a listing that cannot be read is
an error with the place in it; otherwise each entry is exactly once a row or a reject with a reason from the list, rows
have the bytes that were put in and the caption their JSON has, and nothing raises. Every tenth trial reads recaptions
from a Parquet file that was changed. The same source gives the same outcome twice.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from builder.base.errors import Laion6mError, ListingError
from builder.base.options import ConvertOptions
from builder.conversion.convert import convert
from stress.common import LostError, account, arguments, close, in_process, write_tar
from stress.fuzz_parquet import change
from tests.outputs import output_bytes
from tests.sources import make_source, picture

SAMPLES = 40
PATIENCE = 120.0
GOOD = b'{"caption": "A caption.", "url": "https://example.org/1.jpg"}'

DOCUMENTS: tuple[tuple[bytes, str | None], ...] = (
    # what it is, and the caption of its row; None where there can be none
    (GOOD, "A caption."),
    (b'{"re_caption": "new", "caption": "old"}', "new"),
    (b'{"caption": "first", "caption": "last"}', "last"),
    (b"\xef\xbb\xbf" + GOOD, "A caption."),
    (b'{"caption": "half \\ud83d of it"}', "half \ufffd of it"),
    (b'{"caption": "nul \\u0000 in it"}', "nul \0 in it"),
    (b'{"caption": "line\\nbreak", "x": NaN, "y": Infinity}', "line\nbreak"),
    (b' \n\t{"caption": "blanks around"}\r\n ', "blanks around"),
    (json.dumps({"caption": "long " * 400_000}).encode(), "long " * 400_000),
    (json.dumps({"caption": "\U0001f600 \u202e \uffff"}).encode(), "\U0001f600 \u202e \uffff"),
    (b'{"caption": "kept", "deep": ' + b"[" * 50 + b"]" * 50 + b"}", "kept"),
    (
        b'{"caption": "<script>alert(1)</script> | [x](javascript:y) `z`"}',
        "<script>alert(1)</script> | [x](javascript:y) `z`",
    ),
    (b"", None),
    (b"{", None),
    (b"null", None),
    (b"[]", None),
    (b'"caption"', None),
    (b"7", None),
    (b"{}", None),
    (b'{"caption": null}', None),
    (b'{"caption": 7}', None),
    (b'{"caption": ["a"]}', None),
    (b'{"caption": {"a": 1}}', None),
    (b'{"caption": ""}', None),
    (b'{"caption": " \\n\\u3000"}', None),
    (b'{"Caption": "another key"}', None),
    (b'{"caption": "not closed}', None),
    (b'{"caption": "control \x01 character"}', None),
    (b'{"caption": "\xff\xfe"}', None),
    (GOOD.decode().encode("utf-16"), None),
    (GOOD.decode().encode("utf-16-be"), None),
    (GOOD.decode().encode("utf-32"), None),
    (GOOD + GOOD, None),
    (GOOD + b"\0", None),
    (b"[" * 100_000, None),
    (b'{"caption": "x", "n": ' + b"9" * 10_000 + b"}", None),
    (b'{"caption":' * 2000, None),
    (b"\0" * 700, None),
    (b"<html>429 Too Many Requests</html>", None),
)


def make(folder: Path, rng: random.Random) -> tuple[list[Any], dict[str, bytes], dict[str, str | None]]:
    """A source without its listing: its sound entries, image bytes by path, captions by annotation path."""
    (folder / "raw").mkdir(parents=True)
    (folder / "captions").mkdir()
    images: dict[str, bytes] = {}
    documents: dict[str, bytes] = {}
    captions: dict[str, str | None] = {}
    entries = []
    for number in range(SAMPLES):
        key = f"{number % 2:05d}/{number:09d}"
        document, caption = rng.choice(DOCUMENTS)
        if rng.random() < 0.2:
            document, caption = _damaged(rng, GOOD), "?"
        images[f"{key}.jpg"], documents[f"{key}.json"] = picture(number), document
        captions[f"{key}.json"] = caption
        entries.append({"image": f"{key}.jpg", "annotation": f"{key}.json"})
    for side, members in (("raw", images), ("captions", documents)):
        for number in range(2):
            part = {name: data for name, data in members.items() if name.startswith(f"{number:05d}")}
            write_tar(folder / side / f"{number:05d}.tar", part)
    return entries, images, captions


def _damaged(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 5))):
        at = rng.randrange(len(changed))
        changed[at : at + rng.choice((0, 1, 1, 4))] = rng.choice(
            (b"", rng.randbytes(1), b'"', b"\\", b"{", b"\0", b"\\u12")
        )
    return bytes(changed)


def odd_entries(rng: random.Random, entries: list[Any]) -> list[Any]:
    """Entries as people and programs leave them, all of which have an image and an annotation path."""
    found = list(entries)
    strange = [
        {"image": f"./{entries[0]['image']}", "annotation": entries[0]["annotation"]},
        {"image": f"/{entries[1]['image']}", "annotation": entries[1]["annotation"], "more": [1, {"image": 3}]},
        {"image": "../../etc/passwd", "annotation": "../../etc/passwd"},
        {"image": "/etc/passwd", "annotation": "/etc/passwd.json"},
        {"image": "77777/000000001.jpg", "annotation": "77777/000000001.json"},
        {"image": "", "annotation": ""},
        {"image": "a\0b.jpg", "annotation": "a\nb.json"},
        {"image": "\ud83d.jpg", "annotation": "\udfff.json"},
        {"image": "}, {", "annotation": "},"},
        {"image": "x" * 10_000, "annotation": "y/" * 5_000},
        {"image": entries[2]["image"], "annotation": entries[3]["annotation"]},
        {"image": entries[2]["image"], "annotation": "00000/absent.json"},
    ]
    found += rng.sample(strange, rng.randrange(len(strange)))
    found += rng.choices(entries, k=rng.choice((0, 0, 4)))
    rng.shuffle(found)
    return found


def listing_text(rng: random.Random, entries: list[Any]) -> bytes:
    """data.json: mostly sound, in several dresses."""
    dress = rng.choice(({}, {"indent": 2}, {"ensure_ascii": False}, {"separators": (",", ":")}))
    data = json.dumps(entries, **dress).encode("utf-8", "backslashreplace")
    return rng.choice((data, data, b"\xef\xbb\xbf" + data, b" \n" + data + b"\n\n"))


def broken_listing(rng: random.Random, entries: list[Any]) -> bytes:
    """data.json that cannot be read, or that a lenient reader would read wrongly. (A comma behind the last entry, which
    loses nothing, is let pass.)"""
    data = json.dumps(entries).encode()
    at = rng.randrange(len(data))
    return rng.choice(
        (
            data[:at],
            b"",
            b" \n ",
            b"{}",
            b"null",
            json.dumps({"data": entries}).encode(),
            data[:-1] + b", 7]",
            data[:-1] + b', {"image": 7, "annotation": "a"}]',
            data[:-1] + b', {"Image": "a", "annotation": "a"}]',
            data[:-1] + b', {"image": null, "annotation": "a"}]',
            data.replace(b'"annotation"', b'"caption"', 1),
            data + data,
            data[:-1] + b",,]",
            data[:at] + rng.randbytes(2) + data[at:],
            json.dumps(entries).encode("utf-16"),
            b"[" * 100_000,
            b"\n".join(json.dumps(entry).encode() for entry in entries),
        )
    )


def trial(seed: int, number: int, scratch: str) -> Counter[str]:
    warnings.simplefilter("ignore")
    rng = random.Random(seed * 1_000_003 + number)
    folder = Path(scratch) / "source"
    shutil.rmtree(scratch, ignore_errors=True)
    if number % 10 == 9:
        return recaptions_trial(Path(scratch), rng)
    sound, images, captions = make(folder, rng)
    entries = odd_entries(rng, sound)
    broken = number % 3 == 2
    text = broken_listing(rng, entries) if broken else listing_text(rng, entries)
    (folder / "data.json").write_bytes(text)
    figures: Counter[str] = Counter()
    if broken:
        try:
            listed = json.loads(text.decode("utf-8-sig"))
            if not isinstance(listed, list) or not all(_is_entry(each) for each in listed):
                listed = None
        except (ValueError, RecursionError):
            listed = None
        try:
            summary = convert(str(folder), str(Path(scratch) / "out"), num_proc=1, quiet=True)
        except ListingError as error:
            if "data.json" not in str(error) or not any(word in str(error) for word in ("byte", "entry")):
                raise LostError(f"no place in {error}") from None
            if listed is not None:
                raise LostError(f"a sound listing was refused: {error}") from None
            return Counter(refused=1)
        if listed is None or summary.totals.listed != len(listed):
            raise LostError(f"a broken listing gave {summary.totals}: {text[:100]!r}")
        return Counter(rows=summary.totals.rows, rejects=summary.totals.listed - summary.totals.rows)
    digests = []
    for processes in (1, 2) if number % 5 == 0 else (1,):
        out = Path(scratch) / f"out{processes}"
        convert(str(folder), str(out), num_proc=processes, quiet=True)
        contents = {place: images.get(_normal(entry["image"]), b"") for place, entry in enumerate(entries)}
        counted = account(out, len(entries), contents)
        digests.append(output_bytes(out))
    if digests[0] != digests[-1]:
        raise LostError("the same source gave other bytes")
    check_captions(out, entries, captions)
    figures.update(rows=counted.rows, rejects=counted.rejects)
    return figures


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("image", "annotation"))


def _normal(path: str) -> str:
    return "/".join(part for part in path.split("\0")[0].split("/") if part not in ("", "."))


def check_captions(out: Path, entries: list[Any], captions: dict[str, str | None]) -> None:
    """Rows have the caption their document has, and what can have none is a reject."""
    rows = [row for shard in sorted((out / "data").iterdir()) for row in pq.ParquetFile(shard).read().to_pylist()]
    annotation_of = {}
    for entry in entries:
        annotation_of.setdefault(_normal(entry["image"]), _normal(entry["annotation"]))
    seen = set()
    for row in rows:
        path = row["image"]["path"]
        seen.add(path)
        caption = captions[annotation_of[path]]
        if caption != "?" and row["caption"] != caption:
            raise LostError(f"{path}: {row['caption'][:80]!r} where {caption!r:.80} belongs")
    for path, annotation in annotation_of.items():
        good = captions.get(annotation) not in (None, "?") and path[:5] in ("00000", "00001") and len(path) == 19
        if good and path not in seen:
            raise LostError(f"{path} has a caption and is no row")


def recaptions_trial(scratch: Path, rng: random.Random) -> Counter[str]:
    """An img2dataset source whose Parquet of recaptions was changed."""
    source = make_source(scratch / "source", rng.choice(("img2dataset", "img2dataset_key")), 2, 5)
    file = Path(source.recaptions[0])
    if rng.random() < 0.8:
        file.write_bytes(change(rng, file.read_bytes(), ".parquet"))
    try:
        summary = convert(
            str(source.path), str(scratch / "out"), ConvertOptions(recaptions=source.recaptions), num_proc=1, quiet=True
        )
    except Laion6mError:
        return Counter(refused=1)
    counted = account(scratch / "out", summary.totals.listed)
    return Counter(rows=counted.rows, rejects=counted.rejects)


def main() -> int:
    options = arguments(__doc__ or "", 600, 400)
    figures: Counter[str] = Counter(dict.fromkeys(("trials", "refused", "rows", "rejects"), 0))
    deadline = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory(
        prefix="fuzz-json-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None
    ) as name:
        for number in range(options.trials):
            if time.monotonic() > deadline:
                break
            scratch = str(Path(name) / "trial")

            def work(number: int = number, scratch: str = scratch) -> Counter[str]:
                try:
                    return trial(options.seed, number, scratch)
                except LostError as error:
                    print(f"trial {number}: {error}", flush=True)
                    return Counter(lost=1)

            ending = in_process(work, PATIENCE)
            figures["trials"] += 1
            if ending.value is None:
                figures["hangs" if ending.hung else "crashes"] += 1
                print(f"trial {number}: {ending}", flush=True)
            else:
                figures += ending.value
    return close("fuzz_json", dict(figures) | {name: figures[name] for name in ("crashes", "hangs", "lost")})


if __name__ == "__main__":
    sys.exit(main())
