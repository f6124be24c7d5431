"""Groups of arguments that several commands share, and the options made from them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Any

from builder.base.options import MAX_PIXELS, ConvertOptions, SamplePolicy, parse_size
from builder.cli.parser import Group, Parser
from builder.engines.views import STYLES

_TABLES = {"parquet", "jsonl", "ndjson", "json", "csv", "tsv"}
"""Endings of recaption files, compressed or not. Behind ``--recaptions FILE``, such words are values too."""


_NUM_PROC = "number of processes (default: the cores of this machine)"


def _number(kind: type[int] | type[float], words: str, least: float, most: float) -> Callable[[str], float]:
    """A type of arguments: numbers from ``least`` to ``most``. ``words``: what such a number is called in errors."""

    def read(text: str) -> float:
        with suppress(ValueError):
            if least <= (value := kind(text)) <= most:
                return value
        raise argparse.ArgumentTypeError(f"{text} is not {words}")

    return read


whole = _number(int, "a whole number", -inf, inf)
number = _number(float, "a number", -inf, inf)
share = _number(float, "a number from 0 to 1", 0, 1)


def positive(text: str) -> int:
    """An integer argument of 1 or more, in digits alone: int() would also read 1_0 and +3."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return int(text)


def add_common(parser: Parser) -> None:
    """Arguments of every command."""
    add = parser.add_argument_group("output").add_argument
    add("--json", action="store_true", help='print one JSON object on stdout ({"error": …} after a failure)')
    add("-q", "--quiet", action="store_true", help="show no progress and no notes")
    add(
        "--progress",
        choices=STYLES,
        default="auto",
        help="how to show progress on stderr (default: auto, a bar on a terminal, else lines)",
    )
    add("--log", metavar="FILE", help="append all messages to FILE, with the time of each")


def add_processes(parser: Parser) -> None:
    parser.add_argument("--num-proc", type=positive, metavar="N", help=_NUM_PROC)


def add_workers(parser: Parser) -> None:
    """Arguments for processes, or a Ray cluster."""
    add = parser.add_argument_group("workers").add_argument
    add("--num-proc", type=positive, metavar="N", help=_NUM_PROC)
    add("--engine", choices=["local", "ray"], default="local", help="work on this machine or on Ray (default: local)")
    add("--address", metavar="ADDR", help="address of a Ray cluster: auto or HOST:PORT (default: start one here)")


def add_storage(parser: Parser) -> None:
    parser.add_argument(
        "--storage-options",
        type=_options_of_storage,
        metavar="JSON",
        help='options that open URLs, for all or by scheme: {"s3": {…}}. Better keep secrets in the environment',
    )


def add_lists(parser: Parser, what: str) -> None:
    """Arguments for files that name the ``what`` ("rows" …) to take or to leave out."""
    add = parser.add_argument
    add("--keys", metavar="FILE", help=f"take only {what} that FILE names: keys, paths, urls, sha256 or phash")
    add("--without", metavar="FILE", help=f"leave out {what} that FILE names, such as a takedown list")


def add_hub(parser: Parser, *, stream: bool = False) -> None:
    """Arguments for a repository on the Hub. ``stream``: also those of convert, which pushes while it converts."""
    add = parser.add_argument_group("the Hub").add_argument
    if stream:
        add("--push-to", metavar="REPO_ID", help="upload the shards to the Hub while they are made")
        add("--delete-pushed", action="store_true", help="delete each shard here after the Hub has it")
    add("--public", action="store_true", help="make a new repository public (default: private)")
    add("--revision", metavar="R", help="branch to push to; it is created if it is missing (default: main)")
    add("--token", metavar="T", help="token of the Hub (better: set HF_TOKEN, or run `hf auth login`)")


def add_slice(parser: Parser) -> None:
    add = parser.add_argument_group("slice of the work").add_argument
    add("--start", type=whole, default=0, metavar="I", help="first raw tar to take, in order of names (default: 0)")
    add("--end", type=whole, default=-1, metavar="J", help="raw tar to stop before; -1 takes all (default: -1)")


def add_policy(parser: Parser) -> None:
    """Arguments that decide which samples become rows."""
    group = parser.add_argument_group("samples")
    add = group.add_argument
    add(
        "--caption-key", default="auto", metavar="NAME", help="field of the caption (default: re_caption, else caption)"
    )
    add(
        "--max-aspect-ratio",
        type=number,
        default=3.0,
        metavar="R",
        help="largest longer ÷ shorter side; 0 is off (default: 3.0)",
    )
    add("--min-side", type=whole, metavar="N", help="least pixels of the shorter side (default: off)")
    add("--max-pixels", type=whole, default=MAX_PIXELS, metavar="N", help=f"most pixels (default: {MAX_PIXELS:,})")
    add(
        "--max-reject-ratio",
        type=share,
        default=0.05,
        metavar="R",
        help="with a larger share of rejects the exit code is 3 (default: 0.05)",
    )
    add_recaptions(parser, "files or folders with captions (Parquet, JSON lines, CSV) to join with the images", group)
    add(
        "--on",
        metavar="FIELD",
        help="field of the sidecars that joins recaptions, or FIELD=COLUMN (default: url, else key, the images' names)",
    )
    listing = group.add_mutually_exclusive_group()
    listing.add_argument(
        "--listing", metavar="FILE", help="read FILE in place of data.json: JSON, JSON lines or CSV, compressed or not"
    )
    listing.add_argument("--no-listing", action="store_true", help="ignore data.json: every annotation is a sample")


def add_recaptions(parser: Parser, help: str, group: Group | None = None) -> None:
    parser.add_several("--recaptions", like=_is_table, metavar="FILE", help=f"{help}; give one or more", group=group)


def convert_options(arguments: argparse.Namespace, format: str) -> ConvertOptions:
    """Options from the arguments of ``add_policy``. Raises OptionError."""
    return ConvertOptions(
        format=format,
        policy=SamplePolicy(**named(arguments, "caption_key", "max_aspect_ratio", "min_side", "max_pixels")),
        max_shard_size=parse_size(getattr(arguments, "max_shard_size", 500_000_000)),
        recaptions=tuple(arguments.recaptions),
        limit=getattr(arguments, "limit", None),
        on=arguments.on,
        listing=False if arguments.no_listing else arguments.listing,
    )


def named(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Arguments that a function of ``builder`` takes by the same names."""
    return {name: getattr(arguments, name) for name in names}


def how(arguments: argparse.Namespace) -> dict[str, Any]:
    """How the work is done: what the command has of ``add_slice``, ``add_workers`` and ``add_storage``."""
    names = ("start", "end", "num_proc", "engine", "address", "storage_options")
    return named(arguments, *(name for name in names if hasattr(arguments, name)))


def _is_table(path: str) -> bool:
    return any(part in _TABLES for part in path.lower().split(".")[1:])


def _options_of_storage(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('not a JSON object, such as {"endpoint_url": "http://…"}')
    return value
