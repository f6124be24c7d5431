"""The choice of one of several captions, and the prompt made from it."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from builder.base.errors import OptionError
from builder.mm.order import check_weights
from builder.mm.skips import problem_of

_TRIED = 500
"""Rows to look at. If none of them has a caption of some name, the name is probably misspelt."""


class CaptionChoice:
    """Chooses captions by weight. Their names are columns or annotation fields. Picklable. Each process counts for
    itself which names it has found."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        """``weights``: name → any positive number. Raises OptionError."""
        if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
            raise OptionError("captions", weights, 'give a dict of weights, like {"caption": 0.7, "short": 0.3}')
        check_weights("captions", [*weights.values()], dict(weights))
        self.weights = {name: float(weight) for name, weight in weights.items()}
        self._found = dict.fromkeys(self.weights, 0)
        self._tried = 0

    def __contains__(self, name: object) -> bool:
        return name in self.weights

    def choose(self, text_of: Callable[[str], Any]) -> str:
        """One of the row's captions. From a list of strings it takes one string.

        With several names it draws once from ``random``. It draws once more if the caption is a list of several. With
        one name and one string it draws nothing, as upstream draws nothing for its caption. Raises ValueError if the
        row has none of the captions.
        """
        found = {name: text for name in self.weights if (text := _usable(text_of(name)))}
        self._count(found)
        if not found:
            raise ValueError(f"the row has none of the captions {', '.join(self.weights)}")
        if len(self.weights) == 1:
            (texts,) = found.values()
        else:
            (name,) = random.choices(list(found), [self.weights[name] for name in found])
            texts = found[name]
        return texts[0] if len(texts) == 1 else random.choice(texts)

    def _count(self, found: Mapping[str, Any]) -> None:
        if self._tried >= _TRIED:
            return
        self._tried += 1
        for name in found:
            self._found[name] += 1
        never = [name for name, count in self._found.items() if not count]
        if self._tried == _TRIED and never:
            warnings.warn(
                f"captions: none of {_TRIED} rows had {', '.join(never)}. Check the names of the columns and fields.",
                stacklevel=2,
            )


def _usable(value: Any) -> list[str]:
    """The texts of a value, which is a string or a list of strings. Blank strings are left out."""
    texts = value if isinstance(value, list) else [value]
    return [text for text in texts if isinstance(text, str) and text.strip()]


def make_prompt(template: Mapping[str, Any], caption: str, unconditional: float) -> str:
    """The caption in upstream's template. With probability ``unconditional`` (0 to 1), the template without a caption.
    Draws once from ``random``. Raises OptionError if the template cannot be used."""
    try:
        if random.uniform(0, 1) < unconditional:
            prompt = template["CFG"]
        else:
            prompt = template["GENERATION"].format(input=caption.strip())
        prompt = template["INSTRUCTION"].format(input=prompt)
        if template.get("IMG_START_TOKEN_FOR_GENERATION", True):
            prompt += template["IMG_START_TOKEN"]
    except (KeyError, IndexError, ValueError) as error:  # the template is at fault: the caption is only inserted
        raise OptionError("prompt_template", list(template), f"cannot be used: {problem_of(error)}") from error
    return str(prompt)
