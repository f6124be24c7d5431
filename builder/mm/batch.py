"""Loading whole batches: the images go into one block of memory, and the prompts are tokenised together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info


class Batch:
    """One batch while its samples are loaded. ``number``: the next sample's place in the batch.

    ``holds_pixels``: images are written into one block of memory, so stacking them copies nothing. In a loader's worker
    the block is shared memory, so only its handle goes to the training process. ``tokenizes``: prompts are collected
    and tokenised together.
    """

    def __init__(self, count: int, pixel_type: torch.dtype, *, holds_pixels: bool, tokenizes: bool) -> None:
        self.holds_pixels, self.tokenizes = holds_pixels, tokenizes
        self.number = 0
        self._count, self._pixel_type = count, pixel_type
        self._block: Tensor | None = None
        self._prompts: list[str] = []

    def place(self, shape: tuple[int, ...]) -> Tensor:
        """Memory for the next sample's image: uninitialised, contiguous. It is a separate block if the image's shape
        differs from the first image's."""
        if self._block is None:
            self._block = _empty((self._count, *shape), self._pixel_type)
        if tuple(self._block.shape[1:]) != shape:
            return torch.empty(shape, dtype=self._pixel_type)
        return self._block[self.number]

    def add_prompt(self, prompt: str) -> None:
        """Collect the next sample's prompt, for ``tokenize``."""
        self._prompts.append(prompt)

    def tokenize(
        self, samples: Sequence[dict[str, Any]], tokenizer: Any, options: Mapping[str, Any], max_length: int
    ) -> None:
        """Set each sample's ``input_ids`` (n, int64), cut to ``max_length`` tokens."""
        rows = tokenizer(self._prompts, return_attention_mask=False, **options)["input_ids"]
        for sample, row in zip(samples, rows, strict=True):
            sample["input_ids"] = torch.tensor(row[:max_length], dtype=torch.int64)


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    block = torch.empty(0, dtype=dtype)
    if get_worker_info() is None:
        return block.new_empty(shape)
    storage: torch.UntypedStorage = block.untyped_storage()._new_shared(  # type: ignore[no-untyped-call]
        torch.Size(shape).numel() * block.element_size()
    )
    return block.set_(storage, 0, shape, torch.empty(shape, device="meta").stride())


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """``torch.stack``. It copies nothing if the tensors fill one block of memory, one after another."""
    first = tensors[0]
    storage, size = first.untyped_storage(), first.numel()
    in_place = size > 0 and storage.nbytes() == len(tensors) * size * first.element_size()
    if in_place and all(_lies_at(number * size, tensor, first) for number, tensor in enumerate(tensors)):
        return first.as_strided((len(tensors), *first.shape), (size, *first.stride()), 0)
    return torch.stack(list(tensors))


def _lies_at(offset: int, tensor: Tensor, first: Tensor) -> bool:
    return (
        tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and tensor.storage_offset() == offset
        and tensor.shape == first.shape
        and tensor.dtype == first.dtype
        and tensor.is_contiguous()
    )


def tokenizes_batches(tokenizer: Any, options: Mapping[str, Any]) -> bool:
    """Whether ``tokenizer`` gives the same tokens for a list of texts as for each text alone. The fast tokenizers of
    transformers do, if ``options`` set only ``add_special_tokens``: others may pad."""
    return bool(getattr(tokenizer, "is_fast", False)) and set(options) <= {"add_special_tokens"}
