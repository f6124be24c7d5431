"""Read a stretch of a listing in its usual form with numpy. Three times as fast as ``json`` if all paths have the same
length.

``{"image": "a.jpg", "annotation": "a.json"}, {"image": …`` in ASCII without escapes: apart from the paths,
all entries have the same bytes. These are compared, so nothing is assumed. Anything that differs is left to ``json``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from builder.base.arrays import with_ending

Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]

_QUOTE = ord('"')
_QUOTES = 8  # per entry
_FRONT = re.compile(rb"[ \t\r\n]*\{[ \t\r\n]*")
_IMAGE = re.compile(rb'"image"[ \t\r\n]*:[ \t\r\n]*"')
_ANNOTATION = re.compile(rb'"[ \t\r\n]*,[ \t\r\n]*"annotation"[ \t\r\n]*:[ \t\r\n]*"')
_BETWEEN = re.compile(rb'"[ \t\r\n]*\}[ \t\r\n]*,[ \t\r\n]*\{[ \t\r\n]*')
_END = re.compile(rb'"[ \t\r\n]*\}[ \t\r\n]*')
_ENTRY = re.compile(
    rb'(?P<braces>\{[ \t\r\n]*%b(?P<image>[^"]*)%b(?P<annotation>[^"]*)"[ \t\r\n]*\})[ \t\r\n]*,[ \t\r\n]*'
    % (_IMAGE.pattern, _ANNOTATION.pattern)
)
_SLASH, _DOT, _FIRST_PRINTED = ord("/"), ord("."), 32


class Plain(NamedTuple):
    """Entries of a listing as text: the concatenated bytes of all images and their lengths; the same for annotations.
    ``sidecar`` (bytes to cut from an image's path, ending to add) if every annotation follows from its image. Then
    ``annotations`` is empty."""

    images: bytes
    image_lengths: Places
    annotations: bytes
    annotation_lengths: Places
    sidecar: tuple[int, bytes] | None = None

    @property
    def entries(self) -> int:
        return len(self.image_lengths)

    def written(self) -> tuple[bytes, Places]:
        """The annotations' bytes and lengths."""
        if self.sidecar is None:
            return self.annotations, self.annotation_lengths
        made, lengths = with_ending(np.frombuffer(self.images, np.uint8), self.image_lengths, *self.sidecar)
        return made.tobytes(), lengths


def plain_entries(text: bytes) -> Plain | None:
    """The entries in ``text``, which begins and ends with an entry; None if some are not in the plain form."""
    if not text.isascii() or b"\\" in text:
        return None
    return _same_length(text) or _any_length(text)


def _same_length(text: bytes) -> Plain | None:
    """The entries if all have the same length: each column of bytes is compared at once. None if they do not."""
    first = text.find(b"{")
    length = text.find(b"{", first + 1) - first
    if length <= 0 or not (entry := _ENTRY.match(text, first, first + length)):
        return None
    body = text[first:] + text[entry.end("braces") : first + length]  # the last entry also gets its comma
    if not _FRONT.fullmatch(text, 0, first + 1) or len(body) % length or entry.end() != first + length:
        return None
    count = len(body) // length
    data = np.frombuffer(body, np.uint8)
    image, image_end, annotation, annotation_end = (
        at - first for at in (*entry.span("image"), *entry.span("annotation"))
    )
    varies = (data[length:] != data[:-length]).reshape(-1, length).any(axis=0)
    varies_between = varies[:image].any() or varies[image_end:annotation].any() or varies[annotation_end:].any()
    if varies_between or body.count(b'"') != _QUOTES * count:
        return None
    rows = data.reshape(count, length)
    images = _checked(rows[:, image:image_end])
    if images is None:
        return None
    image_lengths = np.full(count, image_end - image)
    cut, ending = _ending(entry["image"]), entry["annotation"][-_ending(entry["annotation"]) :]
    stem = image_end - image - cut
    if cut and ending.startswith(b".") and stem == annotation_end - annotation - len(ending):
        shift = annotation - image
        same = np.zeros(len(data), np.bool_)
        np.equal(data[shift:], data[:-shift], out=same[:-shift])
        same_stem = same.reshape(count, length)[:, image : image + stem]
        if same_stem.all() and not varies[annotation + stem : annotation_end].any() and min(ending) >= _FIRST_PRINTED:
            return Plain(images, image_lengths, b"", image_lengths[:0], (cut, ending))
    annotations = _checked(rows[:, annotation:annotation_end])
    if annotations is None:
        return None
    return Plain(images, image_lengths, annotations, np.full(count, annotation_end - annotation))


def _checked(paths: Bytes) -> bytes | None:
    """The bytes of paths of one length, shape (n, length); None if normal_name would change one, or JSON forbids a
    byte."""
    flat = np.ascontiguousarray(paths).reshape(-1)
    if not len(flat):
        return None
    slash, length = flat == _SLASH, paths.shape[1]
    odd = slash[:-1] & ((flat[1:] == _SLASH) | (flat[1:] == _DOT))
    firsts = flat[::length]
    if odd.any() or slash[::length].any() or slash[length - 1 :: length].any() or (firsts == _DOT).any():
        return None
    return flat.tobytes() if flat.min() >= _FIRST_PRINTED else None


def _ending(path: bytes) -> int:
    """The length of a path's ending with its dot; 0 if it has none."""
    dot = path.rfind(b".")
    return len(path) - dot if dot > path.rfind(b"/") + 1 else 0


def _any_length(text: bytes) -> Plain | None:
    data = np.frombuffer(text, np.uint8)
    quotes = np.flatnonzero(data == _QUOTE)
    if not len(quotes) or len(quotes) % _QUOTES:
        return None
    q = quotes.reshape(-1, _QUOTES)
    if not _FRONT.fullmatch(text, 0, int(q[0, 0])) or not _END.fullmatch(text, int(q[-1, 7])):
        return None
    same = _all_alike(data, text, q[:, 0], q[:, 2] + 1, _IMAGE)
    same = same and _all_alike(data, text, q[:, 3], q[:, 6] + 1, _ANNOTATION)
    if not same or not (len(q) == 1 or _all_alike(data, text, q[:-1, 7], q[1:, 0], _BETWEEN)):
        return None
    if _has_odd_names(data, q):
        return None
    images = _between(data, q[:, 2] + 1, q[:, 3])
    if images.min(initial=32) < _FIRST_PRINTED:  # JSON forbids these
        return None
    annotations, lengths = _between(data, q[:, 6] + 1, q[:, 7]), q[:, 7] - q[:, 6] - 1
    if annotations.min(initial=32) < _FIRST_PRINTED:
        return None
    image_lengths = q[:, 3] - q[:, 2] - 1
    cut, sidecar = _ending(text[q[0, 2] + 1 : q[0, 3]]), text[q[0, 6] + 1 : q[0, 7]]
    ending = sidecar[len(sidecar) - _ending(sidecar) :]
    if cut and ending and int(image_lengths.min()) >= cut:
        made, made_lengths = with_ending(images, image_lengths, cut, ending)
        if np.array_equal(made_lengths, lengths) and np.array_equal(made, annotations):
            return Plain(images.tobytes(), image_lengths, b"", lengths[:0], (cut, ending))
    return Plain(images.tobytes(), image_lengths, annotations.tobytes(), lengths)


def _all_alike(data: Bytes, text: bytes, starts: Places, ends: Places, form: re.Pattern[bytes]) -> bool:
    """Whether the bytes from each start to its end are equal and have this form."""
    first, length = int(starts[0]), int(ends[0] - starts[0])
    if not form.fullmatch(text, first, first + length) or not (ends - starts == length).all():
        return False
    found = data[starts[:, None] + np.arange(length)]
    return bool((found == data[first : first + length]).all())


def _has_odd_names(data: Bytes, q: Places) -> bool:
    """Whether normal_name would change a path: ``/a``, ``a//b``, ``a/./b``, ``.a``, ``a/``."""
    slashes = np.flatnonzero(data == _SLASH)
    after, before = data[slashes + 1], data[slashes - 1]
    odd = (after == _SLASH) | (after == _DOT) | (after == _QUOTE) | (before == _QUOTE)
    return bool(odd.any() or (data[q[:, 2] + 1] == _DOT).any() or (data[q[:, 6] + 1] == _DOT).any())


def _between(data: Bytes, starts: Places, ends: Places) -> Bytes:
    """The bytes of all ranges. Ranges must ascend and not overlap."""
    length = int(ends[0] - starts[0])
    if (ends - starts == length).all():
        alike: Bytes = data[starts[:, None] + np.arange(length)].reshape(-1)
        return alike
    edges = np.zeros(len(data) + 1, np.int8)
    edges[starts] += 1
    edges[ends] -= 1  # an empty range cancels its own start
    return data[np.cumsum(edges[:-1], dtype=np.int8).view(np.bool_)]
