"""The command line: parse → options → one call → print. Messages go to stderr; ``--json`` prints one object on
stdout."""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from builder.base.errors import InterruptedRunError, Laion6mError, OptionError, SourceError
from builder.base.names import is_utf8
from builder.base.options import ConvertOptions, SamplePolicy, Slice, parse_size
from builder.base.records import Totals
from builder.cli.arguments import make_parser
from builder.cli.output import discard_stdout, fail, out_of_files, refuse_lost_folder, say, show

DONE, FAILED, USAGE, TOO_MANY_REJECTS = 0, 1, 2, 3
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. This process keeps its signal handlers."""
    as_json = False
    try:
        argv = sys.argv[1:] if argv is None else argv
        parser = make_parser(_RUNS, argv)
        arguments = parser.parse_args(argv)
        for text in _texts(arguments):
            if not is_utf8(text) or "\0" in text:  # from a shell in another encoding; Arrow, JSON have no place for it
                parser.error(f"{text!r} is not UTF-8")
        as_json = arguments.json
        refuse_lost_folder(_places(arguments))
        code: int = arguments.run(arguments)
    except OptionError as error:
        fail(str(error), as_json=False)
        return USAGE
    except InterruptedRunError as error:
        fail(str(error), as_json=as_json)
        return _INTERRUPTED
    except KeyboardInterrupt:
        fail("interrupted. Run the same command again to go on.", as_json=as_json)
        return _INTERRUPTED
    except Laion6mError as error:
        fail(str(error), as_json=as_json)
        return FAILED
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        discard_stdout()
        return FAILED
    except (OSError, ImportError) as error:  # at whatever file, a module's among them, the limit was met
        if not out_of_files(str(error)):
            raise
        fail(str(error), as_json=as_json)
        return FAILED
    return code


def take_signals() -> None:
    """Have this process end by SIGTERM as by Ctrl-C. For a process that is the command: others want to keep theirs."""
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may have it ignored, behind a nohup
        signal.signal(signal.SIGINT, _stop)


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


def _show(arguments: argparse.Namespace, document: dict[str, Any], text: str) -> None:
    """The result, as one JSON object on stdout or as text on stderr."""
    if arguments.json:
        show(document)
    else:
        say(text)


def _convert(arguments: argparse.Namespace) -> int:
    if arguments.push_to is not None:
        return _convert_and_push(arguments)
    for name in ("delete_pushed", "public", "revision", "token"):
        if getattr(arguments, name):
            raise OptionError(name, "given", "goes with --push-to")
    options = _options(arguments, arguments.format)
    from builder.conversion.convert import convert
    from builder.conversion.report import describe_summary

    summary = convert(
        arguments.source,
        arguments.out,
        options,
        part=Slice(arguments.start, arguments.end),
        num_proc=arguments.num_proc,
        engine=arguments.engine,
        address=arguments.address,
        storage_options=arguments.storage_options,
    )
    _show(arguments, summary.to_json(), describe_summary(summary))
    return _verdict(arguments, summary.totals, summary.complete)


def _convert_and_push(arguments: argparse.Namespace) -> int:
    from builder.conversion.report import describe_summary
    from builder.hub.stream_out import convert_and_push

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
    from builder.hub.push import push

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
    from builder.conversion.index import index
    from builder.conversion.report import describe_summary

    summary = index(
        arguments.source,
        arguments.out,
        options,
        digest=arguments.digest,
        num_proc=arguments.num_proc,
        engine=arguments.engine,
        address=arguments.address,
    )
    _show(arguments, summary.to_json(), describe_summary(summary))
    return _verdict(arguments, summary.totals, summary.complete)


def _verify(arguments: argparse.Namespace) -> int:
    from builder.verification.verify import describe_verification, verify

    result = verify(
        arguments.out,
        source=arguments.source,
        decode=arguments.decode,
        recaptions=tuple(arguments.recaptions),
        num_proc=arguments.num_proc,
        engine=arguments.engine,
        address=arguments.address,
    )
    if unread := next(filter(out_of_files, result.problems), None):  # what could not be opened is not what is wrong
        raise SourceError(f"not all was verified: {unread}")
    _show(arguments, result.to_json(), describe_verification(result))
    return DONE if result.ok else FAILED


def _extract(arguments: argparse.Namespace) -> int:
    from builder.jobs.extract import describe_extraction, extract

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
    from builder.jobs.info import describe_info, info

    result = info(arguments.path)
    _show(arguments, result.to_json(), describe_info(result))
    return DONE


def _add_column(arguments: argparse.Namespace) -> int:
    from builder.jobs.add_column import add_column

    summary = add_column(arguments.out, arguments.name, arguments.source, num_proc=arguments.num_proc)
    text = f"{summary.rows:,} rows of {summary.name} in {summary.shards:,} shards, {summary.bytes:,} bytes of arrays"
    _show(arguments, summary.to_json(), text)
    return DONE


def _demo(arguments: argparse.Namespace) -> int:
    from builder.jobs.demo import demo

    result = demo(arguments.dir, say=say)
    if arguments.json:
        _show(arguments, result.to_json(), "")
    return DONE if result.ok else FAILED


def _verdict(arguments: argparse.Namespace, totals: Totals, complete: bool) -> int:
    rejected = sum(totals.rejected.values())
    if rejected > arguments.max_reject_ratio * totals.listed:
        whole = "The output is whole; meta/rejects.parquet names them."
        say(
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


_RUNS = {
    "convert": _convert,
    "index": _index,
    "verify": _verify,
    "extract": _extract,
    "push": _push,
    "add-column": _add_column,
    "info": _info,
    "demo": _demo,
}


def _texts(arguments: argparse.Namespace) -> Iterator[str]:
    for value in vars(arguments).values():
        yield from (each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str))


def _places(arguments: argparse.Namespace) -> Iterator[str]:
    """Paths and URLs among the arguments."""
    named = vars(arguments)
    yield from (named[name] for name in ("source", "out", "path", "dir") if named.get(name) is not None)
    yield from named.get("recaptions", ())


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
    _hold_standard_files()
    take_signals()
    code: list[Any] = [FAILED]
    atexit.register(_leave, code)
    try:
        code[0] = main()
    except SystemExit as error:  # argparse's
        code[0] = error.code
        raise
    sys.exit(code[0])


def _hold_standard_files() -> None:
    """A daemon may start a command with stdin, stdout or stderr closed. The next files that are opened would take their
    numbers, and what a library prints would go into them."""
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:  # it gets the lowest number that is free
        pass
    os.close(spare)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as there is somebody to say something


def _leave(code: list[Any]) -> None:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        return  # closed, full or None: let Python end as it does
    os._exit(code[0] if isinstance(code[0], int) else FAILED)


if __name__ == "__main__":
    command()
