"""A tokenizer for tests, in a module of its own so that it pickles."""

from __future__ import annotations

from typing import Any


class Letters:
    """A tokenizer with a token for each letter."""

    def encode(self, text: str, return_tensors: str, add_special_tokens: bool) -> Any:
        import torch

        assert return_tensors == "pt"
        return torch.tensor([[1] * add_special_tokens + [ord(letter) for letter in text]])
