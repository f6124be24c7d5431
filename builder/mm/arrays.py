"""Arrays of columns (latents, embeddings) in samples and batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from builder.base.errors import OptionError
from builder.mm.batch import stack
from builder.mm.tensors import from_array
from builder.read.columns import Array, Column
from builder.read.view import Rows

TAKEN = {"pixel_values", "image_latents", "image_tokens", "input_ids", "attention_mask", "image_dir", "image_file",
         "type"}  # fmt: skip
"""Names that samples and batches already use."""


class ArrayColumns:
    """The arrays of a dataset's rows, by their names in the samples. Picklable."""

    def __init__(
        self, rows: Rows, image_latents: str | None, arrays: Sequence[str], missing_ok: bool | Sequence[str]
    ) -> None:
        """``missing_ok``: True, or the columns in which a row may lack its array. Raises OptionError, SourceError,
        DamagedFileError, IndexMismatchError."""
        if isinstance(arrays, str):
            raise OptionError("arrays", arrays, f'give a list of columns: ["{arrays}"]')
        columns = ([("image_latents", image_latents)] if image_latents is not None else []) + [(n, n) for n in arrays]
        for name in arrays:
            if name in TAKEN:
                raise OptionError("arrays", name, "samples have this field already. Give the column another name")
        optional = [name for _, name in columns] if missing_ok is True else list(missing_ok or ())
        for name in optional:
            if name not in [column for _, column in columns]:
                raise OptionError("missing_ok", name, "this column is not in image_latents or arrays. Name one that is")
        self.optional = frozenset(optional)
        self._columns: dict[str, Column] = {}
        for key, name in columns:
            column = rows.reader._column(name)
            if not isinstance(column, Column):
                option = "image_latents" if key == "image_latents" else "arrays"
                raise OptionError(option, name, "this column holds values. Name a column of arrays")
            self._columns[key] = column

    def __bool__(self) -> bool:
        return bool(self._columns)

    def __contains__(self, key: object) -> bool:
        return key in self._columns

    def of(self, row: int) -> dict[str, Tensor | None]:
        """The tensors of row ``row`` of the reader. A missing array is None if ``missing_ok`` allows it for its column.
        Otherwise it raises ValueError."""
        tensors: dict[str, Tensor | None] = {}
        for key, column in self._columns.items():
            array: Array | None = column[row]
            if array is None and column.name not in self.optional:
                allowed = f'To allow that, give missing_ok=["{column.name}"]'
                raise ValueError(f"no array in the column {column.name}. {allowed}")
            tensors[key] = None if array is None else from_array(array)
        return tensors


def collate_arrays(name: str, arrays: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """A batch's arrays under ``name``.

    * All have one shape: they are stacked.
    * Some rows have no array: zeros stand for it. ``name_mask`` (b, bool) is true for rows that have one.
    * No row has an array: there is only ``name_mask`` (b, bool), all false.
    * The first dimension differs: shorter arrays are padded with zeros at its end. ``name_mask`` (b n, bool) is true
      where a row has values.

    Raises OptionError if the shapes differ in any other dimension.
    """
    there = [array for array in arrays if array is not None]
    if not there:
        return {f"{name}_mask": torch.zeros(len(arrays), dtype=torch.bool)}
    shapes = {tuple(array.shape) for array in there}
    if len(shapes) == 1:
        if len(there) == len(arrays):
            return {name: stack(there)}
        blank = torch.zeros_like(there[0])
        mask = torch.tensor([array is not None for array in arrays])
        return {name: torch.stack([blank if array is None else array for array in arrays]), f"{name}_mask": mask}
    if len({shape[1:] for shape in shapes}) > 1 or () in shapes:
        found = " and ".join(map(str, sorted(shapes)))
        raise OptionError("collate_fn", name, f"the shapes are {found}. Only the first dimension may differ")
    blank = there[0][:0]
    padded, mask = pad([blank if array is None else array for array in arrays])
    return {name: padded, f"{name}_mask": mask}


def pad(rows: Sequence[Tensor], value: float = 0) -> tuple[Tensor, Tensor]:
    """The rows as one tensor (b n …), padded with ``value`` at the end of their first dimension. And its mask (b n,
    bool), true where a row has values."""
    padded = pad_sequence(list(rows), batch_first=True, padding_value=value)
    lengths = torch.tensor([len(row) for row in rows])
    return padded, torch.arange(padded.shape[1])[None, :] < lengths[:, None]
