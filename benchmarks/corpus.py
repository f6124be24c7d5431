"""Sources of any size for the benchmarks, made of the photographs of a source in the card layout."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from glob import glob

PER_TAR = 1000
"""Pairs in a tar of what is made."""


def pairs(source: str) -> Iterator[tuple[bytes, bytes]]:
    """(image, annotation) of a card-layout source, where a raw tar and the captions tar of its name match."""
    for raw in sorted(glob(f"{source}/raw/*.tar")):
        documents = {}
        with tarfile.open(raw.replace("/raw/", "/captions/")) as tar:
            for member in tar:
                if member.isfile():
                    documents[member.name.rpartition(".")[0]] = tar.extractfile(member).read()  # type: ignore[union-attr]
        with tarfile.open(raw) as tar:
            for member in tar:
                if member.isfile() and (document := documents.get(member.name.rpartition(".")[0])):
                    yield tar.extractfile(member).read(), document  # type: ignore[union-attr]


def repeated(source: str, size: float, most: float) -> Iterator[tuple[int, bytes, bytes]]:
    """(number, image, annotation) until the images are ``size`` bytes together, or there are ``most``; the same
    photographs again where SOURCE has too few."""
    done = number = 0
    while done < size and number < most:
        before = number
        for image, document in pairs(source):
            if done >= size or number >= most:
                return
            yield number, image, document
            number, done = number + 1, done + len(image)
        if number == before:
            raise SystemExit(f"{source} has no pairs in raw/*.tar and captions/*.tar")


def make(source: str, folder: str, size: float, *, beside: bool = False, most: float = float("inf")) -> int:
    """Write a source of the card layout and give the number of its pairs. ``size``, ``most``: as in ``repeated``.
    ``beside``: the JSON lies beside the images, in the raw tars."""
    sides = ("raw",) if beside else ("raw", "captions")
    for side in sides:
        os.makedirs(f"{folder}/{side}")
    listing: list[dict[str, str]] = []
    tars: list[tarfile.TarFile] = []
    for number, image, document in repeated(source, size, most):
        shard = f"{number // PER_TAR:05d}"
        if not number % PER_TAR:
            close(tars)
            directory = tarfile.TarInfo(shard)
            directory.type = tarfile.DIRTYPE
            for side in sides:
                path = f"{folder}/{side}/{shard}.tar"
                tars.append(tarfile.open(path, "w", format=tarfile.GNU_FORMAT))  # noqa: SIM115 - closed by `close`
                tars[-1].addfile(directory)
        stem = f"{shard}/{number:09d}"
        listing.append({"image": f"{stem}.jpg", "annotation": f"{stem}.json"})
        for tar, name, data in ((tars[0], f"{stem}.jpg", image), (tars[-1], f"{stem}.json", document)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    close(tars)
    with open(f"{folder}/data.json", "w") as handle:
        json.dump(listing, handle)
    return len(listing)


def close(tars: list[tarfile.TarFile]) -> None:
    while tars:
        tars.pop().close()


def photographs(source: str, folder: str, most: int) -> None:
    """The first JPEG files of a source, as files."""
    os.makedirs(folder)
    found = 0
    for image, _ in pairs(source):
        if found == most:
            break
        if image.startswith(b"\xff\xd8"):
            with open(f"{folder}/{found:05d}.jpg", "wb") as handle:
                handle.write(image)
            found += 1
