"""The command line: parse → options → one call → print. Messages go to stderr; ``--json`` prints one object on
stdout."""

from __future__ import annotations

import argparse
import atexit
import gc
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from builder import __version__
from builder.errors import InterruptedRunError, Laion6mError, OptionError, OutputError
from builder.names import PLAN, WORK
from builder.options import MAX_PIXELS, ConvertOptions, SamplePolicy, Slice, parse_size
from builder.records import Totals
from builder.run.findings import printable
from builder.urls import masked

if TYPE_CHECKING:
    from builder.run.ahead import Ahead

DONE, FAILED, USAGE, TOO_MANY_REJECTS = 0, 1, 2, 3
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. This process keeps its signal handlers."""
    try:
        parser = _parser()
        arguments = parser.parse_args(argv)
        for text in _texts(arguments):
            if not _is_utf8(text):  # from a shell in another encoding; Arrow and JSON have no place for it
                parser.error(f"{text!r} is not UTF-8")
        code: int = arguments.run(arguments)
    except OptionError as error:
        _complain(error)
        return USAGE
    except InterruptedRunError as error:
        _complain(error)
        return _INTERRUPTED
    except KeyboardInterrupt:
        _say("laion6m: interrupted. Run the same command again to go on.")
        return _INTERRUPTED
    except Laion6mError as error:
        _complain(error)
        return FAILED
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        _discard_stdout()
        return FAILED
    return code


def take_signals() -> None:
    """Have this process end by SIGTERM as by Ctrl-C. For a process that is the command: others want to keep theirs."""
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may have it ignored, behind a nohup
        signal.signal(signal.SIGINT, _stop)


def _discard_stdout() -> None:
    """What is still held of it must not raise once more when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stop(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends a run as Ctrl-C does. Not in a destructor: what it raises Python prints and drops. Then it is for
    a moment later."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            later = threading.Timer(0.02, os.kill, (os.getpid(), number))
            later.daemon = True  # of a command that has ended by then nothing is asked
            later.start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def _complain(error: Laion6mError) -> None:
    """Names in it may be a stranger's: what does not print is escaped."""
    _say(f"laion6m: {printable(str(error))}")


def _say(text: str) -> None:
    sys.stderr.write(masked(text) + "\n")
    sys.stderr.flush()


def _show(arguments: argparse.Namespace, document: dict[str, Any], text: str) -> None:
    """The result, as one JSON object on stdout or as text on stderr."""
    if arguments.json:
        try:
            sys.stdout.write(json.dumps(document) + "\n")  # ASCII: whatever encoding stdout has can hold it
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            _discard_stdout()
            raise OutputError(f"cannot write the result to stdout: {error.strerror}") from error
    else:
        _say(text)


def _convert(arguments: argparse.Namespace) -> int:
    if arguments.push_to is not None:
        return _convert_and_push(arguments)
    for name in ("delete_pushed", "public", "revision", "token"):
        if getattr(arguments, name):
            raise OptionError(name, "given", "goes with --push-to")
    options = _options(arguments, arguments.format)
    with _scanners(arguments, options, shapes=False) as ahead:
        from builder.run.convert import convert
        from builder.run.report import describe_summary

        summary = convert(
            arguments.source,
            arguments.out,
            options,
            part=Slice(arguments.start, arguments.end),
            num_proc=arguments.num_proc,
            engine=arguments.engine,
            address=arguments.address,
            storage_options=arguments.storage_options,
            ahead=ahead,
        )
    _show(arguments, summary.to_json(), describe_summary(summary))
    return _verdict(arguments, summary.totals, summary.complete)


def _convert_and_push(arguments: argparse.Namespace) -> int:
    from builder.run.report import describe_summary
    from builder.run.stream_out import convert_and_push

    summary, pushed = convert_and_push(
        arguments.source,
        arguments.out,
        _options(arguments, arguments.format),
        push_to=arguments.push_to,
        delete_pushed=arguments.delete_pushed,
        public=arguments.public,
        revision=arguments.revision,
        token=arguments.token,
        part=Slice(arguments.start, arguments.end),
        num_proc=arguments.num_proc,
        engine=arguments.engine,
        address=arguments.address,
        storage_options=arguments.storage_options,
    )
    text, next_steps = describe_summary(summary), "\nnext:"
    if pushed:
        text = f"{text.partition(next_steps)[0]}\n{pushed}"  # what comes next is there, not here
    _show(arguments, summary.to_json() | {"pushed": pushed and pushed.to_json()}, text)
    return _verdict(arguments, summary.totals, summary.complete)


def _push(arguments: argparse.Namespace) -> int:
    from builder.run.push import push

    pushed = push(
        arguments.out,
        arguments.repo_id,
        public=arguments.public,
        captions_only=arguments.captions_only,
        revision=arguments.revision,
        create_pr=arguments.create_pr,
        num_proc=arguments.num_proc,
        token=arguments.token,
        verify_only=arguments.verify_only,
    )
    _show(arguments, pushed.to_json(), str(pushed))
    return DONE if pushed.ok else FAILED


def _index(arguments: argparse.Namespace) -> int:
    options = _options(arguments, "parquet")
    with _scanners(arguments, options, shapes=not arguments.digest) as ahead:
        from builder.run.index import index
        from builder.run.report import describe_summary

        summary = index(
            arguments.source,
            arguments.out,
            options,
            digest=arguments.digest,
            num_proc=arguments.num_proc,
            engine=arguments.engine,
            address=arguments.address,
            ahead=ahead,
        )
    _show(arguments, summary.to_json(), describe_summary(summary))
    return _verdict(arguments, summary.totals, summary.complete)


def _scanners(arguments: argparse.Namespace, options: ConvertOptions, *, shapes: bool) -> Ahead:
    """Scanners for an engine of this machine's processes, unless there is a plan already that needs no scan."""
    from builder.run.ahead import Ahead, scan_ahead

    planned = arguments.out is not None and os.path.exists(os.path.join(arguments.out, WORK, PLAN))
    if planned or arguments.engine != "local":
        return Ahead([], 0)
    return scan_ahead(arguments.source, options.recaptions, arguments.num_proc, shapes=shapes)


def _verify(arguments: argparse.Namespace) -> int:
    from builder.run.verify import describe_verification, verify

    result = verify(
        arguments.out,
        source=arguments.source,
        decode=arguments.decode,
        recaptions=tuple(arguments.recaptions),
        num_proc=arguments.num_proc,
        engine=arguments.engine,
        address=arguments.address,
    )
    _show(arguments, result.to_json(), describe_verification(result))
    return DONE if result.ok else FAILED


def _extract(arguments: argparse.Namespace) -> int:
    from builder.run.extract import describe_extraction, extract

    result = extract(
        arguments.path,
        arguments.out,
        num_proc=arguments.num_proc,
        engine=arguments.engine,
        address=arguments.address,
        start=arguments.start,
        end=arguments.end,
    )
    _show(arguments, result.to_json(), describe_extraction(result))
    return FAILED if result.failed else DONE


def _info(arguments: argparse.Namespace) -> int:
    from builder.run.info import describe_info, info

    result = info(arguments.path)
    _show(arguments, result.to_json(), describe_info(result))
    return DONE


def _add_column(arguments: argparse.Namespace) -> int:
    from builder.run.add_column import add_column

    summary = add_column(arguments.out, arguments.name, arguments.source, num_proc=arguments.num_proc)
    text = f"{summary.rows:,} rows of {summary.name} in {summary.shards:,} shards, {summary.bytes:,} bytes of arrays"
    _show(arguments, summary.to_json(), text)
    return DONE


def _demo(arguments: argparse.Namespace) -> int:
    from builder.run.demo import demo

    result = demo(arguments.dir, say=_say)
    if arguments.json:
        _show(arguments, result.to_json(), "")
    return DONE if result.ok else FAILED


def _verdict(arguments: argparse.Namespace, totals: Totals, complete: bool) -> int:
    rejected = sum(totals.rejected.values())
    if rejected > arguments.max_reject_ratio * totals.listed:
        whole = "The output is whole; meta/rejects.parquet names them."
        _say(
            f"laion6m: {rejected:,} of {totals.listed:,} samples were rejected, more than --max-reject-ratio "
            f"{arguments.max_reject_ratio:g} allows. {whole if complete else 'This slice is done all the same.'}"
        )
        return TOO_MANY_REJECTS
    return DONE


def _options(arguments: argparse.Namespace, format: str) -> ConvertOptions:
    return ConvertOptions(
        format=format,
        policy=SamplePolicy(
            caption_key=arguments.caption_key,
            max_aspect_ratio=arguments.max_aspect_ratio,
            min_side=arguments.min_side,
            max_pixels=arguments.max_pixels,
        ),
        max_shard_size=parse_size(getattr(arguments, "max_shard_size", 500_000_000)),
        recaptions=tuple(arguments.recaptions),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="laion6m",
        description="Pair image tars with recaption tars: convert to Parquet, index, verify, extract, publish.",
        epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 done but more rejects than --max-reject-ratio.",
    )
    parser.add_argument("--version", action="version", version=f"laion6m {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        return sub

    convert = command("convert", _convert, "turn a source (raw/*.tar, captions/*.tar, data.json) into Parquet or Arrow")
    convert.add_argument("source", metavar="SOURCE")
    convert.add_argument("out", metavar="OUT")
    convert.add_argument("--format", choices=["parquet", "arrow"], default="parquet")
    convert.add_argument("--max-shard-size", default="500MB", metavar="SIZE", help="of each file in data/ (500MB)")
    convert.add_argument("--push-to", metavar="REPO_ID", help="push the shards to the Hub as they are made")
    convert.add_argument("--delete-pushed", action="store_true", help="remove each shard once the Hub has it")
    _add_hub(convert)
    _add_storage(convert)
    _add_workers(convert)
    _add_slice(convert)
    _add_policy(convert)

    index = command("index", _index, "the same rows without copying an image: an index into the source's own tars")
    index.add_argument("source", metavar="SOURCE")
    index.add_argument("out", metavar="OUT", nargs="?", help="where meta/ goes (default: SOURCE)")
    index.add_argument("--digest", action="store_true", help="read every image and note its checksum")
    _add_workers(index)
    _add_policy(index)

    verify = command("verify", _verify, "prove that OUT is whole, and with --source that it is what the source holds")
    verify.add_argument("out", metavar="OUT")
    verify.add_argument("--source", metavar="SOURCE", help="compare every row with its source members")
    verify.add_argument("--decode", action="store_true", help="decode every image")
    verify.add_argument(
        "--recaptions", nargs="+", default=[], metavar="FILE", help="the source's, where they lie elsewhere than by it"
    )
    _add_workers(verify)

    extract = command(
        "extract", _extract, "raw/, captions/ and data.json as files, from a source or a converted folder"
    )
    extract.add_argument("path", metavar="PATH")
    extract.add_argument("out", metavar="OUT")
    _add_workers(extract)
    _add_slice(extract)

    push = command("push", _push, "a converted folder as a dataset repository on the Hub; again sends what differs")
    push.add_argument("out", metavar="OUT")
    push.add_argument("repo_id", metavar="REPO_ID", help="user/name")
    push.add_argument("--captions-only", action="store_true", help="everything but the image bytes")
    push.add_argument("--create-pr", action="store_true", help="propose it as a pull request")
    push.add_argument("--verify-only", action="store_true", help="compare with what the Hub states, change nothing")
    push.add_argument("--num-proc", type=_positive, metavar="N", help="files sent at a time (4)")
    _add_hub(push)

    column = command("add-column", _add_column, "pack one .pt, .npy or .safetensors for each image beside the images")
    column.add_argument("out", metavar="OUT", help="a converted folder")
    column.add_argument("name", metavar="NAME", help="of the column, as CaptionDataset(image_latents=NAME) asks for it")
    column.add_argument(
        "--from", dest="source", metavar="FOLDER", required=True, help="holds <image path>.pt and so on"
    )
    _add_processes(column)

    info = command("info", _info, "what a folder is, what is in it and what to do next; reads no image")
    info.add_argument("path", metavar="PATH")

    demo = command("demo", _demo, "a small source made on the spot, converted, verified and read; offline")
    demo.add_argument("dir", metavar="DIR", nargs="?", help="a folder to make it in (laion6m-demo)")
    return parser


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


def _texts(arguments: argparse.Namespace) -> Iterator[str]:
    for value in vars(arguments).values():
        yield from (each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def command() -> None:
    """The command itself: a process of its own, which ends as soon as all is said and done.

    Python frees every module and object before it ends, 30 ms for those of a short command, and a large dataset's takes
    seconds. The system takes back all of it at once. Threads have been waited for and other exit handlers have run by
    then: the one that is registered first runs last.
    """
    # numpy starts threads for products of matrices when it is imported, 50 ms of processor time: no command has any.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # What importing makes stays, and so do most rows: looking through them for circles at every 700th new object is a
    # tenth of a short command's time.
    gc.set_threshold(20_000)
    take_signals()
    code: list[Any] = [FAILED]
    atexit.register(_leave, code)
    try:
        code[0] = main()
    except SystemExit as error:  # argparse's
        code[0] = error.code
        raise
    sys.exit(code[0])


def _leave(code: list[Any]) -> None:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        return  # closed, full or None: let Python end as it does
    os._exit(code[0] if isinstance(code[0], int) else FAILED)


if __name__ == "__main__":
    command()
