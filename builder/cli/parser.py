"""The parser of one command's arguments: argparse with short errors, hints, and options that take several values."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from builder.base.words import did_you_mean
from builder.cli.output import USAGE

Like = Callable[[str], bool]
Group = argparse._ArgumentGroup


class Parser(argparse.ArgumentParser):
    """Arguments of one command. Options may come before, between and after the positional arguments."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)  # an abbreviation breaks when an option is added
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*arguments, **options)
        self._several: dict[str, Like] = {}

    def add_several(self, name: str, *, like: Like, group: Group | None = None, **options: Any) -> None:
        """Add an option that takes one or more values, in ``group`` if given. Its first value may be any word. The
        following words are values too while ``like`` accepts them, so the option does not swallow positional
        arguments."""
        (group or self).add_argument(name, action="append", default=[], **options)
        self._several[name] = like

    @property
    def positionals(self) -> list[argparse.Action]:
        return [action for action in self._actions if not action.option_strings]

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse. A usage error ends the process with exit code 2."""
        argv = list(self._one_value_each(argv))
        known = self._option_string_actions
        for word in argv[: argv.index("--")] if "--" in argv else argv:
            name = word.partition("=")[0]
            if name.startswith("--") and name not in known:
                self.error(f"there is no option {name}.{did_you_mean(name.replace('_', '-'), known)}")
        return self.parse_intermixed_args(argv)

    def _one_value_each(self, argv: Sequence[str]) -> Iterable[str]:
        """Turn ``--recaptions a b`` into ``--recaptions a --recaptions b``."""
        option, values = "", 0
        for word in argv:
            if word.startswith("-") and word != "-":
                option, values = word, 0
            elif option in self._several:
                if values and self._several[option](word):
                    yield option
                elif values:
                    option = ""
                values += 1
            yield word

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a word that is no choice, without argparse's quotes."""
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"{value} is not one of {', '.join(action.choices)}")

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message}\nSee {self.prog} --help\n")
