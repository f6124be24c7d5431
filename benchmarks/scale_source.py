"""A source in the card layout with as many samples as are asked for, and next to nothing in each: what
``benchmarks/scale.py`` measures with.

1,000 samples to a tar; each image is a GIF of 35 bytes, each annotation a JSON object of 487 bytes with a caption of
360 (6 million of them are more than 2^31 bytes of text). data.json lists them in random order: the worst case for a
join. 2 KB of disk for each sample.
"""

from __future__ import annotations

import os
import tarfile

import numpy as np
import numpy.typing as npt

PER_TAR = 1000
_GIF = (
    b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
)
_BEFORE = b'{"url": "https://example.com/images/'
_BETWEEN = b'", "TEXT": "image", "WIDTH": 1, "HEIGHT": 1, "similarity": 0.31, "re_caption": "'
_AFTER = b'"}'
_WORDS = 39
"""Words in a caption, 9 bytes each with the space behind; the sample's number, 9 bytes, follows."""

Bytes = npt.NDArray[np.uint8]


def make_source(folder: str, samples: int) -> None:
    """Write raw/, captions/ and data.json. ``samples``: a multiple of PER_TAR."""
    for side in ("raw", "captions"):
        os.makedirs(os.path.join(folder, side), exist_ok=True)
    random = np.random.default_rng(samples)
    words = random.integers(ord("a"), ord("z") + 1, (512, 9), dtype=np.uint8)
    words[:, 8] = ord(" ")
    for number in range(samples // PER_TAR):
        digits = _digits(np.arange(number * PER_TAR, (number + 1) * PER_TAR), 9)
        _write_tar(folder, "raw", number, digits, ".gif", np.broadcast_to(_bytes(_GIF), (PER_TAR, len(_GIF))))
        caption = words[random.integers(0, len(words), (PER_TAR, _WORDS))].reshape(PER_TAR, -1)
        parts = [_fixed(_BEFORE), digits, _fixed(_BETWEEN), caption, digits, _fixed(_AFTER)]
        _write_tar(folder, "captions", number, digits, ".json", np.concatenate(parts, axis=1))
    write_listing(os.path.join(folder, "data.json"), samples)


def write_listing(path: str, samples: int) -> None:
    """Only data.json, as ``json.dump`` writes it."""
    order = np.random.default_rng(samples).permutation(samples)
    with open(path, "w") as file:
        file.write("[")
        for first in range(0, samples, 1 << 16):
            numbers = order[first : first + (1 << 16)].tolist()
            stems = (f"{number // PER_TAR:05d}/{number:09d}" for number in numbers)
            entries = ", ".join(f'{{"image": "{stem}.gif", "annotation": "{stem}.json"}}' for stem in stems)
            file.write((", " if first else "") + entries)
        file.write("]")


def _write_tar(folder: str, side: str, number: int, digits: Bytes, ending: str, contents: Bytes) -> None:
    """A tar as ``tar -cf 00000.tar 00000`` makes it, of files that are all of one length below 512 bytes."""
    name = f"{number:05d}"
    info = tarfile.TarInfo(f"{name}/{'0' * 9}{ending}")
    info.size = contents.shape[1]
    blocks = np.zeros((len(digits), 1024), dtype=np.uint8)
    blocks[:, :512] = _bytes(info.tobuf(tarfile.GNU_FORMAT))
    blocks[:, len(name) + 1 : len(name) + 10] = digits
    blocks[:, 148:156] = ord(" ")
    sums = blocks[:, :512].sum(axis=1, dtype=np.int64)
    octal = np.stack([(sums >> (3 * place)) & 7 for place in range(5, -1, -1)], axis=1)
    blocks[:, 148:154] = octal + ord("0")
    blocks[:, 154] = 0
    blocks[:, 512 : 512 + contents.shape[1]] = contents
    directory = tarfile.TarInfo(name)
    directory.type = tarfile.DIRTYPE
    with open(os.path.join(folder, side, f"{name}.tar"), "wb") as file:
        file.write(directory.tobuf(tarfile.GNU_FORMAT))
        file.write(blocks.tobytes())
        file.write(bytes(-file.tell() % tarfile.RECORDSIZE or tarfile.RECORDSIZE))


def _digits(numbers: npt.NDArray[np.int64], count: int) -> Bytes:
    return (numbers[:, None] // 10 ** np.arange(count - 1, -1, -1) % 10 + ord("0")).astype(np.uint8)


def _bytes(text: bytes) -> Bytes:
    return np.frombuffer(text, dtype=np.uint8)


def _fixed(text: bytes) -> Bytes:
    return np.broadcast_to(_bytes(text), (PER_TAR, len(text)))
