"""Documents that carry a checksum of themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import xxhash

from builder.store.seals import file_digest, seal, unseal


def test_what_was_sealed_comes_back() -> None:
    document = {"b": [1, None, "é"], "a": {"x": 1.5}}
    assert unseal(seal(document)) == document
    assert seal(document) == seal(dict(reversed(document.items())))


@pytest.mark.parametrize("text", [b"", b"{", b"7", b"[]", b"null", b"{}", b'{"checksum": 7}', b"[" * 100_000, b"\xff"])
def test_anything_else_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        unseal(text)


def test_any_flipped_bit_is_noticed() -> None:
    text = seal({"name": "a b", "number": 17})
    for place in range(len(text) * 8):
        changed = bytearray(text)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(ValueError, match=r"\S"):
            unseal(bytes(changed))


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 3])
def test_a_file_is_digested_whole(size: int, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * size)
    assert file_digest(str(tmp_path / "a")) == xxhash.xxh3_128_hexdigest(b"x" * size)
