"""One row of a dataset, as users see it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from builder.read.index import IndexBatch
    from builder.read.reader import Reader

_VALUES = ("image", "key", "caption", "width", "height", "annotation")
"""Keys of a sample as a mapping. datasets and torch's default collate read these."""

_OWN = ("key", "path", "image", "caption", "width", "height", "size", "position", "digest", "annotation",
        "annotation_path", "row")  # fmt: skip


class Sample:
    """One row. Each value is read when you ask for it.

    * ``key``: such as "00000/000000012". ``path``: the same with its extension, as listed.
    * ``image``: the file's bytes. ``width``, ``height``: pixels as stored.
    * ``caption``. ``annotation``: the JSON text. ``annotation_path``.
    * ``row``: its number in the Reader. ``position``: its place in the listing.

    A sample is a mapping too: ``sample["caption"]`` and ``dict(sample)`` work. torch's ``DataLoader`` makes batches of
    lists and tensors from samples without a ``collate_fn``.
    """

    __slots__ = ("_at", "_batch", "_image", "_reader", "row")

    def __init__(self, reader: Reader, row: int, batch: IndexBatch, at: int, image: bytes | None = None) -> None:
        """Row ``row`` of ``reader`` is row ``at`` of ``batch``. ``image``: its bytes if they have been read."""
        self._reader, self.row, self._batch, self._at, self._image = reader, row, batch, at, image

    @property
    def image(self) -> bytes:
        """The image file's bytes. Raises IndexMismatchError, SourceError, DamagedFileError."""
        if self._image is not None:
            return self._image
        return self._reader._read(self._batch, self._at)

    @property
    def caption(self) -> str:
        return self._batch.text("caption", self._at)

    @property
    def key(self) -> str:
        return self._batch.text("key", self._at)

    @property
    def path(self) -> str:
        return self._batch.text("path", self._at)

    @property
    def annotation_path(self) -> str:
        return self._batch.text("annotation_path", self._at)

    @property
    def width(self) -> int:
        return int(self._batch.width[self._at])

    @property
    def height(self) -> int:
        return int(self._batch.height[self._at])

    @property
    def size(self) -> int:
        """Bytes of the image file."""
        return int(self._batch.size[self._at])

    @property
    def position(self) -> int:
        return int(self._batch.position[self._at])

    @property
    def digest(self) -> bytes | None:
        """xxh3-128 of the image's bytes (16 bytes). None if the index was made without reading the images."""
        value: bytes | None = self._batch.digest[self._at].as_py()
        return value

    @property
    def bom(self) -> bool:
        """Whether the annotation's file began with a byte order mark. ``annotation`` leaves it out."""
        return bool(self._batch.bom[self._at].as_py())

    @property
    def annotation(self) -> str:
        """The JSON document. Raises as ``image`` does."""
        return self._reader._annotation(self.row, self._batch, self._at).decode()

    def __getitem__(self, name: str) -> Any:
        """A value by name: an attribute of this class, an added column, or a field of the annotation. Raises
        KeyError."""
        if name in _OWN:
            return getattr(self, name)
        if name in self._reader.added_columns():
            return self._reader._column(name)[self.row]
        document = json.loads(self.annotation)
        if not isinstance(document, dict) or name not in document:
            raise KeyError(name)
        return document[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_VALUES)

    def __len__(self) -> int:
        return len(_VALUES)

    def keys(self) -> tuple[str, ...]:
        return _VALUES

    def to_dict(self) -> dict[str, Any]:
        """image (bytes), key, caption, width, height, annotation (JSON text), and the added columns."""
        return {name: self[name] for name in (*_VALUES, *self._reader.added_columns())}

    @property
    def pil(self) -> Any:
        """The image as ``PIL.Image.Image``: the first frame, in its own mode, not turned by EXIF. Raises
        DamagedFileError if it cannot be decoded."""
        from builder.read.shown import picture

        return picture(self)

    def show(self) -> None:
        """Open the image in the system's viewer."""
        self.pil.show(self.key)

    def _repr_html_(self) -> str:
        """HTML for notebooks: picture, caption, facts."""
        from builder.read.shown import sample_html

        return sample_html(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the reader's paths, the row number and, if it has been read, the image."""
        return self._reader._pickled(self.row, self._image)

    def __repr__(self) -> str:
        image = f"{self.width}x{self.height}, {self.size:,} bytes"
        return f"Sample({self.row}, key={self.key!r}, {image}, caption={self.caption[:40]!r})"


Mapping.register(Sample)  # not a base class: Mapping's == compares values, so it would read images
