"""What can be said on the command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from builder import __version__
from builder.base.names import DEMO
from builder.base.options import MAX_PIXELS

Run = Callable[[argparse.Namespace], int]


def make_parser(runs: Mapping[str, Run], argv: Sequence[str]) -> argparse.ArgumentParser:
    """A parser of ``argv``. ``runs``: what each command runs, as ``arguments.run``.

    Where ``argv`` begins with a command, the others are left out: telling argparse of all their arguments takes 7 ms,
    before anything else can begin.
    """
    parser = argparse.ArgumentParser(
        prog="laion6m",
        description="Pair image tars with recaption tars: convert to Parquet, index, verify, extract, publish.",
        epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 done but more rejects than --max-reject-ratio.",
    )
    parser.add_argument("--version", action="version", version=f"laion6m {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in argv[:1] if argv and argv[0] in _COMMANDS else _COMMANDS:
        help, declare = _COMMANDS[name]
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=runs[name])
        sub.add_argument(
            "--json", action="store_true", help='print one JSON object on stdout; of a failure {"error": …}'
        )
        declare(sub)
    return parser


def _convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("out", metavar="OUT")
    parser.add_argument("--format", choices=["parquet", "arrow"], default="parquet")
    parser.add_argument("--max-shard-size", default="500MB", metavar="SIZE", help="of each file in data/ (500MB)")
    parser.add_argument("--push-to", metavar="REPO_ID", help="push the shards to the Hub as they are made")
    parser.add_argument("--delete-pushed", action="store_true", help="remove each shard once the Hub has it")
    _add_hub(parser)
    _add_storage(parser)
    _add_workers(parser)
    _add_slice(parser)
    _add_policy(parser)


def _index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("out", metavar="OUT", nargs="?", help="where meta/ goes (default: SOURCE)")
    parser.add_argument("--digest", action="store_true", help="read every image and note its checksum")
    _add_workers(parser)
    _add_policy(parser)


def _verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT")
    parser.add_argument("--source", metavar="SOURCE", help="compare every row with its source members")
    parser.add_argument("--decode", action="store_true", help="decode every image")
    parser.add_argument(
        "--recaptions", nargs="+", default=[], metavar="FILE", help="the source's, where they lie elsewhere than by it"
    )
    _add_workers(parser)


def _extract(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("out", metavar="OUT")
    _add_workers(parser)
    _add_slice(parser)


def _push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT")
    parser.add_argument("repo_id", metavar="REPO_ID", help="user/name")
    parser.add_argument("--captions-only", action="store_true", help="everything but the image bytes")
    parser.add_argument("--create-pr", action="store_true", help="propose it as a pull request")
    parser.add_argument("--verify-only", action="store_true", help="compare with what the Hub states, change nothing")
    parser.add_argument("--num-proc", type=_positive, metavar="N", help="files sent at a time (4)")
    _add_hub(parser)


def _add_column(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", help="a converted folder")
    parser.add_argument("name", metavar="NAME", help="of the column, as CaptionDataset(image_latents=NAME) asks for it")
    parser.add_argument(
        "--from", dest="source", metavar="FOLDER", required=True, help="holds <image path>.pt and so on"
    )
    _add_processes(parser)


def _info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH")


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", metavar="DIR", nargs="?", default=DEMO, help=f"a folder to make it in ({DEMO})")


def _add_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--num-proc", type=_positive, metavar="N", help="processes (default: the cores there are to use)"
    )


def _add_workers(parser: argparse.ArgumentParser) -> None:
    _add_processes(parser)
    parser.add_argument("--engine", choices=["local", "ray"], default="local", help="who does the work (local)")
    parser.add_argument("--address", metavar="ADDR", help="of a Ray cluster: auto or HOST:PORT (one of its own, here)")


def _add_storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--storage-options",
        type=_options_of_storage,
        metavar="JSON",
        help='of the file systems behind URLs, or by scheme {"s3": {…}}; keys are better left to the environment',
    )


def _add_hub(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--public", action="store_true", help="where the repository is new: let everybody see it")
    parser.add_argument("--revision", metavar="R", help="branch to push to; made where it is missing (main)")
    parser.add_argument("--token", metavar="T", help="of the Hub (better: HF_TOKEN, or `hf auth login`)")


def _add_slice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--start", type=int, default=0, metavar="I", help="first of the sorted raw tars to take (0)")
    parser.add_argument("--end", type=int, default=-1, metavar="J", help="tar to stop before; -1 means all (-1)")


def _add_policy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--caption-key", default="auto", metavar="NAME", help="the caption's field (re_caption, else caption)"
    )
    parser.add_argument(
        "--max-aspect-ratio", type=float, default=3.0, metavar="R", help="longer ÷ shorter side; 0 is off (3.0)"
    )
    parser.add_argument("--min-side", type=int, metavar="N", help="pixels of the shorter side, at least (off)")
    parser.add_argument(
        "--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help=f"width × height, at most ({MAX_PIXELS:,})"
    )
    parser.add_argument(
        "--recaptions",
        nargs="+",
        default=[],
        metavar="FILE",
        help="Parquet files with captions, joined by url or key (img2dataset)",
    )
    parser.add_argument(
        "--max-reject-ratio",
        type=_share,
        default=0.05,
        metavar="R",
        help="share of rejects above which the exit code is 3 (0.05)",
    )


def _options_of_storage(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('not a JSON object, such as {"endpoint_url": "http://…"}')
    return value


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 1")
    return value


_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "convert": ("turn a source (raw/*.tar, captions/*.tar, data.json) into Parquet or Arrow", _convert),
    "index": ("the same rows without copying an image: an index into the source's own tars", _index),
    "verify": ("prove that OUT is whole, and with --source that it is what the source holds", _verify),
    "extract": ("raw/, captions/ and data.json as files, from a source or a converted folder", _extract),
    "push": ("a converted folder as a dataset repository on the Hub; again sends what differs", _push),
    "add-column": ("pack one .pt, .npy or .safetensors for each image beside the images", _add_column),
    "info": ("what a folder is, what is in it and what to do next; reads no image", _info),
    "demo": ("a small source made on the spot, converted, verified and read; offline", _demo),
}
"""Its help, and what declares its arguments."""
