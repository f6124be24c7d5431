"""meta/manifest.json says what OUT holds, and notices any change to itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builder.base import schema
from builder.base.errors import DamagedFileError
from builder.store.manifest import Manifest, read_manifest

MANIFEST = Manifest(
    kind="parquet",
    versions={"laion6m": "0.1.0", "pyarrow": "26.0.0"},
    options={"format": "parquet", "policy": {"caption_key": "auto", "min_side": None}},
    source={"layout": "card", "damaged": {"raw/ä.tar": ["bytes 0 to 5: cut"]}},
    totals={"rows": 2, "listed": 3, "rejected": {"duplicate": 1}},
    files={"README.md": {"size": 7, "xxh3_128": "0" * 32}},
)


def write(out: Path, text: bytes) -> str:
    path = out / schema.MANIFEST
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text)
    return str(out)


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    assert read_manifest(write(tmp_path, MANIFEST.to_json())) == MANIFEST


def test_it_is_json_for_people_and_scripts() -> None:
    text = MANIFEST.to_json()
    assert text.endswith(b"}\n")
    assert "raw/ä.tar" in text.decode()
    document = json.loads(text)
    assert document["totals"]["rows"] == 2
    assert next(iter(document)) == "manifest_version"
    assert list(document)[-1] == "checksum"


def test_the_same_values_are_the_same_bytes() -> None:
    again = Manifest(**{name: getattr(MANIFEST, name) for name in Manifest.__slots__})
    assert again.to_json() == MANIFEST.to_json()


def test_names_that_are_no_text_do_not_stop_it(tmp_path: Path) -> None:
    """A file name of a source, or of an option, may hold bytes that are not UTF-8."""
    odd = Manifest("parquet", {}, {"recaptions": ["caf\udce9.parquet"]}, {"damaged": {"\udcff": ["x"]}}, {}, {})
    assert read_manifest(write(tmp_path, odd.to_json())) == odd


@pytest.mark.slow
def test_any_flipped_bit_is_noticed(tmp_path: Path) -> None:
    text = MANIFEST.to_json()
    for place in range(len(text)):
        for bit in {0, 5, place % 8}:  # 5: between upper and lower case, blank and NUL
            changed = bytearray(text)
            changed[place] ^= 1 << bit
            out = write(tmp_path, bytes(changed))
            with pytest.raises(DamagedFileError):
                read_manifest(out)


def test_any_missing_end_is_noticed(tmp_path: Path) -> None:
    text = MANIFEST.to_json()
    for length in range(len(text) - 1):  # but for the last newline
        with pytest.raises(DamagedFileError, match=r"manifest\.json"):
            read_manifest(write(tmp_path, text[:length]))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b'"text"',
        b"{}",
        b'{"checksum": 1}',
        b"\xff",
        b"[" * 100_000,
        b'{"a": ' + b"9" * 9999 + b"}",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_what_is_no_manifest_is_a_damaged_file(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(DamagedFileError, match=r"manifest\.json"):
        read_manifest(write(tmp_path, text))


def test_what_was_changed_by_hand_is_a_damaged_file(tmp_path: Path) -> None:
    text = MANIFEST.to_json().replace(b'"rows": 2', b'"rows": 3')
    with pytest.raises(DamagedFileError, match="checksum does not fit"):
        read_manifest(write(tmp_path, text))


def test_an_unfinished_folder_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match="it is missing, so the conversion is not finished"):
        read_manifest(str(tmp_path))
