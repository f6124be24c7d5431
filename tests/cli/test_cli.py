from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from builder.base.errors import InterruptedRunError, SourceError, WorkerDiedError
from builder.cli.commands import take_signals
from builder.conversion import build as building
from builder.store import ledger
from tests.outputs import Ran, environment, output_bytes, run_command, start
from tests.sources import Source, faults_of, make_source

FIELDS = {"rows", "listed", "rejected", "unlisted", "shards", "image_bytes", "seconds", "out"}
FIELDS |= {"unread", "replaced", "damage"}


def test_a_conversion_is_one_json_object_on_stdout_and_nothing_else(source: Source, tmp_path: Path) -> None:
    ran = run_command("convert", source.path, tmp_path / "out", "--num-proc", 2, "--json")
    assert (ran.code, ran.stderr) == (0, "")
    assert ran.stdout.count("\n") == 1
    assert set(ran.document) == FIELDS
    assert ran.document["rows"] == ran.document["listed"] == 24
    assert ran.document["out"] == str(tmp_path / "out")
    assert ran.document["rejected"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["convert {source} {out}", "index {source} {out}", "info {source}", "demo {out}"])
def test_a_result_is_on_stdout_and_stderr_is_for_messages(command: str, source: Source, tmp_path: Path) -> None:
    ran = run_command(*command.format(source=source.path, out=tmp_path / "out").split())
    assert (ran.code, ran.stderr) == (0, "")
    assert "laion6m verify" in ran.stdout or "laion6m convert" in ran.stdout


@pytest.mark.parametrize("command", ["convert", "index"])
def test_both_commands_print_the_same_counts(command: str, tmp_path: Path, run: Callable[..., Ran]) -> None:
    source = make_source(tmp_path / "src", faults=faults_of("card"), shards=4)
    ran = run(command, source.path, tmp_path / "out", "--num-proc", 1, "--json")
    document = ran.document
    assert set(document) == FIELDS
    assert document["rejected"] == source.reasons
    assert document["listed"] == source.listed == document["rows"] + sum(document["rejected"].values())
    assert document["unlisted"] == source.unlisted
    assert ran.code == 3


@pytest.mark.parametrize(
    ("ratio", "code"),
    [
        ("0.05", 3),  # 2 of 24 are 0.083
        ("0.083", 3),
        ("0.084", 0),
        ("0", 3),
        ("1", 0),
    ],
)
def test_too_many_rejects_are_exit_code_3_and_the_output_is_whole(
    ratio: str, code: int, tmp_path: Path, run: Callable[..., Ran]
) -> None:
    source = make_source(tmp_path / "src", faults=["image_missing", "blank_caption"])
    out = tmp_path / "out"
    ran = run("convert", source.path, out, "--num-proc", 1, "--json", "--max-reject-ratio", ratio)
    assert ran.code == code
    assert ran.document["rows"] == 22
    assert (out / "meta" / "manifest.json").exists()
    if code:
        assert "2 of 24 samples rejected" in ran.stderr
        assert "meta/rejects.parquet names them" in ran.stderr
    else:
        assert ran.stderr == ""


def test_a_share_of_no_rejects_allows_none_and_needs_none(
    source: Source, tmp_path: Path, run: Callable[..., Ran]
) -> None:
    assert run("convert", source.path, tmp_path / "out", "--num-proc", 1, "--max-reject-ratio", "0").code == 0
    (source.path / "data.json").write_text("[]")  # no rows are a failure, whatever the share
    assert run("convert", source.path, tmp_path / "empty", "--num-proc", 1, "--max-reject-ratio", "1").code == 1


def test_a_slice_with_too_many_rejects_does_not_claim_to_be_whole(tmp_path: Path, run: Callable[..., Ran]) -> None:
    source = make_source(tmp_path / "src", faults=["blank_caption"])
    out = tmp_path / "out"
    ran = run("convert", source.path, out, "--num-proc", 1, "--end", "1", "--max-reject-ratio", "0", "--json")
    assert ran.code == 3
    assert ran.document["listed"] == ran.document["rows"] + 1
    ran = run("convert", source.path, out, "--num-proc", 1, "--start", "1", "--json")
    assert (ran.code, ran.document["rows"], ran.document["listed"], ran.document["shards"]) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give a command: convert"),
        (["transmute"], "there is no command transmute"),
        (["convert"], "required: SOURCE, OUT"),
        (["convert", "SRC", "OUT", "--num-proc", "0"], "0 is not a whole number of 1 or more"),
        (["convert", "SRC", "OUT", "--num-proc", "two"], "two is not a whole number of 1 or more"),
        (["convert", "SRC", "OUT", "--num-proc", "-1"], "-1 is not a whole number"),
        (["convert", "SRC", "OUT", "--num-proc", "1_0"], "1_0 is not a whole number of 1 or more"),  # int() reads 10
        (["convert", "SRC", "OUT", "--format", "csv"], "--format: csv is not one of parquet, arrow, webdataset"),
        (["convert", "SRC", "OUT", "--max-shard-size", "much"], "give a number of bytes"),
        (["convert", "SRC", "OUT", "--max-shard-size", "-1"], "give a number of bytes"),
        (["convert", "SRC", "OUT", "--max-shard-size", "999KB"], "1MB or more"),
        (["convert", "SRC", "OUT", "--start", "2", "--end", "1"], "end 1: give -1, or 2 (start) or more"),
        (["convert", "SRC", "OUT", "--start", "one"], "--start: one is not a whole number"),
        (["convert", "SRC", "OUT", "--start", "-1"], "start -1: give 0 or more"),
        (["convert", "SRC", "OUT", "--end", "-2"], "end -2"),
        (["convert", "SRC", "OUT", "--caption-key", ""], "give a field's name"),
        (["convert", "SRC", "OUT", "--min-side", "0"], "laion6m: --min-side 0: give"),
        (["convert", "SRC", "OUT", "--max-pixels", "0"], "laion6m: --max-pixels 0: give"),
        (["convert", "SRC", "OUT", "--max-aspect-ratio", "0.5"], "laion6m: --max-aspect-ratio 0.5"),
        (["convert", "SRC", "OUT", "--max-aspect-ratio", "nan"], "nan is not a number"),
        (["convert", "SRC", "OUT", "--max-reject-ratio", "nan"], "nan is not a number from 0 to 1"),
        (["convert", "SRC", "OUT", "--max-reject-ratio", "-0.1"], "-0.1 is not a number from 0 to 1"),
        (["convert", "SRC", "OUT", "--max-reject-ratio", "5%"], "5% is not a number from 0 to 1"),
        (["convert", "SRC", "O\udcffT"], "is not UTF-8"),
        (["convert", "S\0C", "OUT"], "is not UTF-8"),
        (["convert", "SRC", "OUT", "--recaptions", "a", "b\udc80"], "is not UTF-8"),
        (["index", "SRC", "OUT", "--max-shard-size", "5MB"], "there is no option --max-shard-size"),
        (["index", "SRC", "OUT", "--start", "1"], "there is no option --start"),  # an index is whole or nothing
    ],
)
def test_what_cannot_be_meant_is_exit_code_2(
    arguments: list[str], words: str, source: Source, tmp_path: Path, run: Callable[..., Ran]
) -> None:
    names = {"SRC": str(source.path), "OUT": str(tmp_path / "out")}
    ran = run(*(names.get(each, each) for each in arguments))
    assert (ran.code, ran.stdout) == (2, "")
    assert words in ran.stderr
    assert not (tmp_path / "out").exists()


def cut_listing(source: Path) -> None:
    text = (source / "data.json").read_text()
    (source / "data.json").write_text(text[: len(text) // 2])


def no_tars(source: Path) -> None:
    for tar in (source / "raw").iterdir():
        tar.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda src: (src / "data.json").write_text(""), "the file is empty"),
        (lambda src: (src / "data.json").write_text('{\n"image": 1}'), "found an object; expected a JSON list"),
        (lambda src: (src / "data.json").write_text('[{"image": 1, "annotation": "a"}]'), '"image" is 1, not a path'),
        (lambda src: (src / "data.json").write_text('[{"image": "a"}]'), 'entry 0: has no "annotation"'),
        (lambda src: (src / "data.json").write_text("[" * 9999), "nested too deeply"),
        (lambda src: (src / "data.json").write_bytes(b'[{"image": "\xff"}]'), "not UTF-8"),
        (cut_listing, "the list is cut off here"),
        (no_tars, "is not a source this tool knows"),
        (lambda src: [shutil.rmtree(src / side) for side in ("raw", "captions")], "Expected raw/*.tar"),
        (lambda src: src.rename(src.with_name("gone")), "src is not there"),
        (lambda src: (src.rename(src.with_name("gone")), src.write_text("")), "is not a folder"),
    ],
)
@pytest.mark.parametrize("command", ["convert", "index"])
def test_a_source_that_cannot_be_used_is_exit_code_1_and_one_line(
    command: str, spoil: Callable[[Path], object], words: str, source: Source, tmp_path: Path, run: Callable[..., Ran]
) -> None:
    spoil(source.path)
    ran = run(command, source.path, tmp_path / "out", "--num-proc", 1, "--json")
    assert ran.code == 1
    assert ran.stderr == f"laion6m: {ran.document['error']}\n"
    assert words in ran.stderr


@pytest.mark.parametrize(
    ("recaptions", "words"),
    [
        ("nowhere.parquet", "nowhere.parquet is not there"),
        ("src/data.json", "columns: found image, annotation; a column re_caption or caption is needed"),
    ],
)
def test_recaptions_that_cannot_be_used_are_named(
    recaptions: str, words: str, source: Source, tmp_path: Path, run: Callable[..., Ran]
) -> None:
    ran = run("convert", source.path, tmp_path / "out", "--num-proc", 1, "--recaptions", tmp_path / recaptions)
    assert ran.code == 1
    assert words in ran.stderr


def test_an_out_of_another_job_is_exit_code_1(source: Source, tmp_path: Path, run: Callable[..., Ran]) -> None:
    assert run("convert", source.path, tmp_path / "out", "--num-proc", 1).code == 0
    ran = run("convert", source.path, tmp_path / "out", "--num-proc", 1, "--format", "arrow")
    assert ran.code == 1
    assert "was begun as another job: options.format was" in ran.stderr


def test_a_second_run_into_one_out_is_exit_code_1_and_says_who_is_at_it(
    source: Source, tmp_path: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "_PATIENCE", 0.0)
    with ledger.Ledger(str(tmp_path / "out")).locked(0, 4):
        ran = run("convert", source.path, tmp_path / "out", "--num-proc", 1)
    assert (ran.code, ran.stderr.count("\n")) == (1, 1)
    assert f"process {os.getpid()} on " in ran.stderr
    assert run("convert", source.path, tmp_path / "out", "--num-proc", 1).code == 0


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InterruptedRunError(3, 9), 130, "interrupted with 3 of 9 shards done. Run the same command again"),
        (KeyboardInterrupt(), 130, "interrupted. Run the same command again"),
        (WorkerDiedError("shard 1 of 2 (00000.tar)", "signal SIGKILL"), 1, "(00000.tar) died (signal SIGKILL)"),
    ],
)
def test_an_end_from_outside_has_its_exit_code(
    error: BaseException,
    code: int,
    words: str,
    source: Source,
    tmp_path: Path,
    run: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(building, "survey", fail)
    ran = run("convert", source.path, tmp_path / "out", "--num-proc", 1, "--json")
    assert ran.code == code
    assert ran.stderr == f"laion6m: {ran.document['error']}\n"
    assert words in ran.stderr


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("https://me:hunter2@host/src is not there", "https://…@host/src is not there"),
        ("https://hunter2@host:80/src: 404", "https://…@host:80/src: 404"),
        ("https://host/a?X-Amz-Signature=hunter2&b=1: 403", "https://host/a?X-Amz-Signature=…&b=1: 403"),
        ("https://host/a?sv=1&sig=hunter2 no", "https://host/a?sv=1&sig=… no"),
        ("https://host/a?X-Amz-Security-Token=hunter2", "https://host/a?X-Amz-Security-Token=…"),
        ("a@b.tar: s3://bucket/a@b.tar is not there", "a@b.tar: s3://bucket/a@b.tar is not there"),
        ("a\x1b[2Jb\rc\nd.tar is damaged", "a\\x1b[2Jb\\rc\\nd.tar is damaged"),  # a name from a stranger's tar
    ],
)
def test_an_error_shows_no_password_and_does_not_steer_the_terminal(
    said: str, shown: str, source: Source, tmp_path: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise SourceError(said)

    monkeypatch.setattr(building, "survey", fail)
    ran = run("convert", source.path, tmp_path / "out", "--num-proc", 1, "--json")
    assert ran.stderr == f"laion6m: {shown}\n"
    assert ran.document == {"error": shown}
    assert run("convert", source.path, tmp_path / "out", "--num-proc", 1).stdout == ""


def test_sigterm_is_answered_like_an_interrupt(
    source: Source, tmp_path: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "survey", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    with own_signals():
        assert run("convert", source.path, tmp_path / "out", "--num-proc", 1).code == 130


def test_an_interrupt_while_python_frees_an_object_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    with own_signals():
        freed = {1}  # any object that may have weak references
        watched = weakref.ref(freed, lambda _: signal.raise_signal(signal.SIGTERM))
        del freed
        assert watched() is None
        with pytest.raises(KeyboardInterrupt):
            time.sleep(60)
    assert capsys.readouterr().err == ""


@contextmanager
def own_signals() -> Iterator[None]:
    """The handlers of the command's own process."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), sys.unraisablehook
    try:
        take_signals()
        yield
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
        sys.unraisablehook = before[2]


def test_who_calls_main_keeps_their_signals(source: Source, run: Callable[..., Ran]) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert run("info", source.path).code == 0
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_the_readers_going_away_is_no_traceback(source: Source, tmp_path: Path) -> None:
    process = start("convert", source.path, tmp_path / "out", "--num-proc", 1, "--json")
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=30) == 1
    assert stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_a_daemon_s_closed_streams_stop_no_work(closed: str, source: Source, tmp_path: Path) -> None:
    arguments = f"convert {shlex.quote(str(source.path))} {shlex.quote(str(tmp_path / 'out'))} --json"
    command = f"{shlex.quote(sys.executable)} -m builder {arguments} {closed}"
    done = subprocess.run(command, shell=True, capture_output=True, env=environment(), text=True, check=False)
    assert done.returncode == 0
    assert json.loads(done.stdout)["rows"] == len(source.rows)


@pytest.mark.slow
def test_a_closed_stdout_is_an_error_where_the_result_was_to_go_there(source: Source, tmp_path: Path) -> None:
    arguments = f"convert {shlex.quote(str(source.path))} {shlex.quote(str(tmp_path / 'out'))} --json"
    command = f"{shlex.quote(sys.executable)} -m builder {arguments} >&-"
    done = subprocess.run(command, shell=True, capture_output=True, env=environment(), text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "laion6m: cannot write the result to stdout: it is closed\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_stdout_is_an_error_and_no_traceback(source: Source, tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "builder", "convert", source.path, tmp_path / "out", "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment(), text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "laion6m: cannot write the result to stdout: No space left on device\n"


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_any_name_fits_any_stdout(encoding: str, source: Source, tmp_path: Path) -> None:
    out = tmp_path / "図 ö"
    command = [sys.executable, "-m", "builder", "convert", source.path, out, "--num-proc", "1", "--json"]
    done = subprocess.run(
        command, capture_output=True, env={**environment(), "PYTHONIOENCODING": encoding}, check=True, timeout=60
    )
    assert json.loads(done.stdout)["out"] == str(out)
    assert done.stderr == b""


def test_a_process_ends_at_once_but_after_what_was_to_be_done_at_its_end(source: Source, tmp_path: Path) -> None:
    script = (
        "import atexit, sys, threading, time, weakref; from builder.cli.commands import command\n"
        "class Kept: pass\n"
        "kept = Kept(); weakref.finalize(kept, print, 'finalized')\n"
        "threading.Timer(0.3, print, ['thread']).start()\n"
        "sys.argv[0] = 'laion6m'\n"
        "import builder.cli.commands as cli\n"
        "cli.main = lambda: atexit.register(print, 'handler') and 3\n"
        "command()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment(), check=False
    )
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.splitlines() == ["thread", "handler"]


def test_relative_paths_and_trailing_slashes_mean_the_same(
    source: Source, tmp_path: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("convert", source.path, tmp_path / "out", "--num-proc", 1).code == 0
    monkeypatch.chdir(tmp_path)
    assert run("convert", "src/", "./out/", "--num-proc", 1).code == 0
    assert run("convert", "src", "other", "--num-proc", 1).code == 0
    assert output_bytes(tmp_path / "out") == output_bytes(tmp_path / "other")


def test_help_and_version_are_answered(run: Callable[..., Ran]) -> None:
    assert run("--version").stdout.startswith("laion6m 0.")
    text = run("--help").stdout
    assert "Exit codes: 0 done, 1 failed, 2 usage, 3 done but look" in text
    for option in (
        "--num-proc",
        "--start",
        "--end",
        "--max-aspect-ratio",
        "--max-reject-ratio",
        "--recaptions",
        "--json",
    ):
        assert option in run("convert", "--help").stdout


def test_the_command_line_imports_nothing_heavy() -> None:
    script = (
        "import sys; from builder.cli.commands import main\n"
        "import builder.conversion.convert, builder.conversion.report\n"
        "print([name for name in ('datasets', 'pandas', 'torch', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout == "[]\n"


def test_progress_goes_to_stderr_only(source: Source, tmp_path: Path) -> None:
    script = (
        "import sys; from builder.engines.views import Lines; Lines.first = 0.0; Lines.close = Lines.show\n"
        "from builder.cli.commands import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["convert", str(source.path), str(tmp_path / "out"), "--num-proc", "1", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=environment(), check=True
    )
    assert json.loads(done.stdout)["rows"] == 24
    assert "converting: 100%, 24/24 images" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("extract", "{source}", "s3://b/out"),
        ("extract", "s3://b/src", "{out}"),
        ("verify", "{out}", "--source", "s3://b/src"),
        ("push", "s3://b/out", "user/x"),
        ("add-column", "s3://b/out", "latents", "--from", "{source}"),
        ("add-column", "{out}", "latents", "--from", "s3://b/latents"),
    ],
    ids=" ".join,
)
def test_what_works_on_this_machine_only_says_so_of_a_url(
    command: tuple[str, ...], source: Source, tmp_path: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run(*(part.format(source=source.path, out=tmp_path / "out") for part in command))
    assert ran.code == 1
    assert f"laion6m {command[0]} works on folders of this machine" in ran.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]
