"""The command ``laion6m``: which commands there are, how one is run, what its exit code is.

A command is a module of this wing, and a line in :data:`COMMANDS`. The module has ``EXAMPLE``: command lines that work,
for the help. ``declare(parser)`` adds the command's arguments. ``run(arguments)`` runs it and returns the exit code.
The module is imported only if the command is run or asked for help. So no command pays for the others.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import resource
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from types import FrameType, ModuleType
from typing import Any, NoReturn

from builder import __version__
from builder.base.errors import InterruptedRunError, Laion6mError, OptionError
from builder.base.names import is_utf8
from builder.base.words import did_you_mean, printable
from builder.cli.arguments import add_common
from builder.cli.output import FAILED, USAGE, discard_stdout, fail, out_of_files, say_warnings, start_log
from builder.cli.parser import Parser
from builder.engines.progress import show_progress

COMMANDS = {
    "convert": "make Parquet, Arrow or webdataset shards from a source",
    "index": "make the same rows without a copy: an index that points into the source's tars",
    "verify": "check that a dataset is whole, or with --source that it is what the source holds",
    "extract": "write images and captions as files, from a source or a dataset",
    "select": "choose rows by SQL, lists, samples and splits, without copying an image",
    "view": "look at a dataset in the browser: search, filter, rejects, statistics",
    "report": "write one HTML file about a dataset: statistics, samples, rejects, duplicates",
    "push": "upload a dataset to the Hub; run it again to upload only changes",
    "duplicates": "find images that occur twice, even resized, recompressed, cropped or mirrored",
    "add-column": "add scores, tags, captions or arrays (latents) as a column",
    "info": "say what a folder is, what is in it and what to do next, without reading images",
    "demo": "make a small source, then convert, verify and read it; needs no network",
    "completion": "print a script that completes commands, options and paths in bash, zsh or tcsh",
}
"""Every command and its help. ``add-column`` is the module ``builder.cli.add_column``."""

_INTERRUPTED = 130  # 128 + SIGINT, as in shells
_FREED = 0.05  # seconds, in which Python has long freed an object
_EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 usage, 3 done but look (many rejects, damaged or unread parts)."


def load(name: str) -> ModuleType:
    """A command's module."""
    return import_module(f"builder.cli.{name.replace('-', '_')}")


def make_parser(name: str, parser: Parser | None = None) -> Parser:
    """The parser of one command's arguments. ``parser``: use this one."""
    module = load(name)
    example = "\n  ".join(module.EXAMPLE.splitlines())
    parser = parser or Parser()
    parser.prog, parser.description = f"laion6m {name}", _sentence(COMMANDS[name])
    parser.epilog = f"example:\n  {example}"
    module.declare(parser)
    add_common(parser)
    places = [action.metavar if action.nargs != "?" else f"[{action.metavar}]" for action in parser.positionals]
    parser.usage = " ".join([parser.prog, *map(str, places), "[options]"])
    return parser


def read(argv: Sequence[str]) -> tuple[ModuleType, argparse.Namespace]:
    """The command that ``argv`` names, and its arguments. Raises SystemExit: 2 for a usage error, 0 for --help."""
    for word in argv:
        if not is_utf8(word) or "\0" in word:  # the shell has another encoding; Arrow and JSON cannot hold it
            _top_parser().error(f"{printable(word)} is not UTF-8")
    if not argv or argv[0] not in COMMANDS:
        _answer_without_command(argv)
    return load(argv[0]), make_parser(argv[0]).read(argv[1:])


def _answer_without_command(argv: Sequence[str]) -> NoReturn:
    """Answer --help or --version, or report a usage error."""
    top = _top_parser()
    if not argv:
        top.error(f"give a command: {', '.join(COMMANDS)}")
    if not argv[0].startswith("-"):
        top.error(f"there is no command {argv[0]}.{did_you_mean(argv[0], COMMANDS)}")
    top.parse_known_args(argv[:1])  # ends the process for its own options
    top.error(f"give the command first: laion6m COMMAND {argv[0]} …")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Leaves this process's signal handlers alone."""
    as_json = False
    argv = sys.argv[1:] if argv is None else argv
    try:
        command, arguments = read(argv)
        as_json = arguments.json
        show_progress("none" if arguments.quiet else arguments.progress)
        if arguments.log is not None:
            start_log(arguments.log, argv)
        return int(command.run(arguments))
    except OptionError as error:
        return fail(_as_typed(error, argv), USAGE)
    except InterruptedRunError as error:
        return fail(str(error), _INTERRUPTED, as_json=as_json)
    except KeyboardInterrupt:
        return fail("interrupted. Run the same command again to go on.", _INTERRUPTED, as_json=as_json)
    except Laion6mError as error:
        return fail(str(error), FAILED, as_json=as_json)
    except BrokenPipeError:  # the reader of our output is gone, as with `| head`
        discard_stdout()
        return FAILED
    except (OSError, ImportError) as error:  # any file can hit the limit, even a module's
        return fail(_words_of(error), FAILED, as_json=as_json)


def _as_typed(error: OptionError, argv: Sequence[str]) -> str:
    """The message. It names the option as the user typed it, not as Python does: --min-side, not min_side."""
    name, option = error.args[0], f"--{error.args[0].replace('_', '-')}"
    typed = any(word.partition("=")[0] == option for word in argv)
    return option + str(error).removeprefix(name) if typed else str(error)


def _words_of(error: OSError | ImportError) -> str:
    """The system's message, in one line. Raises the error again if the message helps nobody."""
    if out_of_files(str(error)):
        return str(error)
    if isinstance(error, FileNotFoundError):
        try:
            os.getcwd()
        except FileNotFoundError:
            return "the working directory was deleted. Change to another one (cd), or give absolute paths."
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"cannot use {shlex.quote(os.fsdecode(error.filename))}: {error.strerror}"
    raise error


def take_signals() -> None:
    """Let SIGTERM end this process as Ctrl-C does. Only for the command's own process: other processes keep theirs."""
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # under nohup a shell may ignore it
        signal.signal(signal.SIGINT, _stop)
    sys.unraisablehook = _stop_again


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _stop_again(ignored: Any) -> None:
    """Python ignores what is raised while it frees an object, a KeyboardInterrupt too. Then the user has pressed Ctrl-C
    and nothing ends. So the signal is sent again, when that object is gone."""
    if ignored.exc_type is KeyboardInterrupt:
        threading.Timer(_FREED, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
        sys.__unraisablehook__(ignored)


def command() -> None:
    """The command itself: a process of its own, which ends as soon as all is said.

    Python frees every module and object before it ends. That takes 30 ms for a short command, and seconds for a large
    dataset. The system takes all back at once. So this process ends directly. Its threads and the other exit handlers
    are done by then: the handler that is registered first runs last.
    """
    # At import numpy starts threads for matrix products: 50 ms of processor time. No command needs them.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Objects made by imports stay, and so do most rows. A search for cycles at every 700th new object takes a tenth of
    # a short command's time.
    gc.set_threshold(20_000)
    _hold_standard_files()
    _allow_open_files()
    take_signals()
    say_warnings()
    code: list[Any] = [FAILED]
    atexit.register(_leave, code)
    try:
        code[0] = main()
    except SystemExit as error:  # from a usage error or --help
        code[0] = error.code
        raise
    sys.exit(code[0])


def _top_parser() -> Parser:
    width = max(map(len, COMMANDS)) + 2
    lines = "\n".join(f"  {name:{width}}{help}" for name, help in COMMANDS.items())
    parser = Parser(
        prog="laion6m",
        usage="laion6m COMMAND [options]",
        description=f"Pair image tars with recaption tars: convert, index, verify, publish.\n\ncommands:\n{lines}",
        epilog=f"laion6m COMMAND --help shows a command's options and an example.\n{_EXIT_CODES}",
    )
    parser.add_argument("--version", action="version", version=f"laion6m {__version__}")
    return parser


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _hold_standard_files() -> None:
    """Open stdin, stdout and stderr if a daemon started the command with them closed. Otherwise the next opened files
    get their numbers, and a library's prints would go into them."""
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:  # open takes the lowest free number
        pass
    os.close(spare)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - stays open to the end


def _allow_open_files() -> None:
    """Raise the limit as far as the system allows: the usual 1,024 files are few for thousands of tars."""
    with suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _leave(code: list[Any]) -> None:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        return  # closed, full or None: let Python end as usual
    os._exit(code[0] if isinstance(code[0], int) else FAILED)


if __name__ == "__main__":
    command()
