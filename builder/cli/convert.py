"""laion6m convert: a source's samples as Parquet or Arrow shards."""

from __future__ import annotations

import argparse

from builder.base.errors import OptionError
from builder.base.options import ConvertOptions
from builder.cli.arguments import (
    add_hub,
    add_lists,
    add_policy,
    add_slice,
    add_storage,
    add_workers,
    convert_options,
    how,
    named,
    positive,
)
from builder.cli.output import show, verdict
from builder.cli.parser import Parser

EXAMPLE = "laion6m convert data/laion6m OUT --dry-run\nlaion6m convert data/laion6m OUT --num-proc 8"


def declare(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "source", metavar="SOURCE", help="folder or URL of a source (raw/*.tar, captions/*.tar, data.json) or selection"
    )
    add("out", metavar="OUT", help="folder or URL to write; the same command again goes on where it stopped")
    add(
        "--format",
        choices=["parquet", "arrow", "webdataset"],
        default="parquet",
        help="format of the shards (default: parquet)",
    )
    add("--max-shard-size", default="500MB", metavar="SIZE", help="most bytes of a file in data/ (default: 500MB)")
    add_lists(parser, "samples")
    add("--limit", type=positive, metavar="N", help="take only the first N samples, to try")
    add("--dry-run", action="store_true", help="say which rows, room and time to expect; write nothing")
    add_storage(parser)
    add_policy(parser)
    add_slice(parser)
    add_workers(parser)
    add_hub(parser, stream=True)


def run(arguments: argparse.Namespace) -> int:
    chosen = arguments.keys or arguments.without
    if arguments.dry_run and chosen:
        raise OptionError("dry_run", None, "goes without --keys and --without. laion6m select says what they leave")
    if arguments.push_to is not None and chosen:
        raise OptionError("push_to", None, "goes without --keys and --without. Convert with them first, then push")
    for name in ("delete_pushed", "public", "revision", "token") if arguments.push_to is None else ():
        if getattr(arguments, name):
            raise OptionError(name, None, "goes with --push-to")
    options = convert_options(arguments, arguments.format)
    if arguments.dry_run:
        return _preview(arguments, options)
    if arguments.push_to is not None:
        return _convert_and_push(arguments, options)
    from builder.conversion.convert import convert
    from builder.conversion.report import describe_summary

    lists = named(arguments, "keys", "without")
    summary = convert(arguments.source, arguments.out, options, **lists, **how(arguments))
    show(arguments, summary.to_json(), describe_summary(summary, arguments.storage_options))
    return verdict(arguments.max_reject_ratio, summary)


def _preview(arguments: argparse.Namespace, options: ConvertOptions) -> int:
    from builder.conversion.preview import describe_preview, preview

    known = named(arguments, "start", "end", "num_proc", "storage_options")
    found = preview(arguments.source, arguments.out, options, **known)
    return show(arguments, found.to_json(), describe_preview(found))


def _convert_and_push(arguments: argparse.Namespace, options: ConvertOptions) -> int:
    from builder.conversion.report import describe_summary
    from builder.hub.stream_out import convert_and_push

    hub = named(arguments, "push_to", "delete_pushed", "public", "revision", "token")
    summary, pushed = convert_and_push(arguments.source, arguments.out, options, **hub, **how(arguments))
    text, next_steps = describe_summary(summary), "\nnext:"
    if pushed:
        text = f"{text.partition(next_steps)[0]}\n{pushed}"  # the next steps are on the Hub, not here
    show(arguments, summary.to_json() | {"pushed": pushed and pushed.to_json()}, text)
    return verdict(arguments.max_reject_ratio, summary)
