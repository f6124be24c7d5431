"""How a command ends that cannot do what it was told: one line on stderr, one object for ``--json``, no traceback."""

from __future__ import annotations

import errno
import json
import os
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from builder.conversion import build as building
from builder.verification import verify as verifying
from builder.verification.verify import Verification
from tests.outputs import Ran, environment, run_command
from tests.sources import Source, make_source


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return make_source(tmp_path / "src", shards=4)


def shell(line: str) -> Ran:
    """A line of sh, in which ``laion6m`` is the command."""
    script = f'laion6m() {{ {shlex.quote(sys.executable)} -m builder "$@"; }}; {line}'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env=environment(), check=False)
    return Ran(done.returncode, done.stdout, done.stderr)


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("convert", "{nowhere}", "{out}"),
        ("index", "{nowhere}", "{out}"),
        ("verify", "{nowhere}"),
        ("extract", "{nowhere}", "{out}"),
        ("info", "{nowhere}"),
        ("push", "{nowhere}", "user/name"),
        ("add-column", "{nowhere}", "latents", "--from", "{nowhere}"),
        ("demo", "{file}"),
        ("convert", "https://user:hunter2@localhost:1/src", "{out}"),
    ],
    ids=" ".join,
)
def test_an_error_is_an_object_of_the_words_on_stderr(
    command: tuple[str, ...], tmp_path: Path, run: Callable[..., Ran]
) -> None:
    (tmp_path / "file").write_text("?")
    names = {name: tmp_path / name for name in ("nowhere", "out", "file")}
    ran = run(*(part.format(**names) for part in command), "--json")
    assert ran.code == 1
    assert list(ran.document) == ["error"]
    assert ran.stdout.count("\n") == 1
    assert ran.stderr.splitlines()[-1] == f"laion6m: {ran.document['error']}"
    assert "hunter2" not in ran.stdout + ran.stderr


def test_a_usage_error_prints_no_object(source: Source, tmp_path: Path, run: Callable[..., Ran]) -> None:
    ran = run("convert", source.path, tmp_path / "out", "--min-side", "0", "--json")
    assert (ran.code, ran.stdout) == (2, "")
    assert "--min-side 0: " in ran.stderr


@pytest.mark.parametrize(
    "stdout",
    [
        ">&-",
        pytest.param(">/dev/full", marks=pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")),
    ],
)
def test_an_error_that_stdout_does_not_take_is_still_one_line_on_stderr(stdout: str, tmp_path: Path) -> None:
    ran = shell(f"laion6m info {shlex.quote(str(tmp_path / 'nowhere'))} --json {stdout}")
    assert (ran.code, ran.stderr) == (1, f"laion6m: {tmp_path / 'nowhere'} is not there\n")


@pytest.mark.parametrize(
    "command",
    [
        "convert src out",
        "convert {source} out",
        "index src",
        "verify out",
        "extract {source} ./out",
        "info .",
        "push out user/name",
        "add-column {source} latents --from latents",
        "convert {source} {out} --recaptions {source} re.parquet",
        "demo",
    ],
)
def test_a_deleted_working_directory_is_one_line(
    command: str, source: Source, tmp_path: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    ran = run(*command.format(source=source.path, out=tmp_path / "out").split())
    assert ran.code == 1
    assert ran.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_absolute_paths_need_no_working_directory(source: Source, tmp_path: Path) -> None:
    src, out, gone = (shlex.quote(str(path)) for path in (source.path, tmp_path / "out", tmp_path / "gone"))
    convert, verify = f"laion6m convert {src} {out} --num-proc 2", f"laion6m verify {out} --num-proc 2 --json"
    ran = shell(f"mkdir {gone} && cd {gone} && rmdir {gone} && {convert} --json && {verify}")
    assert ran.code == 0
    assert [json.loads(line)["rows"] for line in ran.stdout.splitlines()] == [32, 32]


@pytest.mark.slow
@pytest.mark.parametrize("limit", [6, 8, 14])
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("command", ["convert", "index", "extract"])
def test_too_low_a_limit_of_open_files_is_named(
    command: str, processes: int, limit: int, source: Source, tmp_path: Path
) -> None:
    lower = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (limit, limit))
    ran = run_command(command, source.path, tmp_path / "out", "--num-proc", processes, "--json", preexec_fn=lower)
    if ran.code:
        assert ran.stderr.count("\n") == 1
        assert os.strerror(errno.EMFILE) in ran.stderr
        assert f"A process may open {limit} files here. To allow more: ulimit -n 1024" in ran.stderr
    else:
        assert ran.stderr == ""  # a limit that was enough for it
    assert ran.code in ((0, 1) if processes == 1 else (0, 1, 2))  # 2: that many processes were too much to ask
    assert ran.code or limit > 6


@pytest.mark.parametrize(
    ("error", "limit"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "x.py"), True),
        (ImportError(f"libarrow.so: cannot open shared object file: {os.strerror(errno.EMFILE)}"), True),
        (OSError(errno.ENFILE, os.strerror(errno.ENFILE), "x.py"), False),  # of the system: no ulimit helps
    ],
)
def test_no_file_left_to_open_is_one_line_wherever_it_is_noticed(
    error: Exception,
    limit: bool,
    source: Source,
    tmp_path: Path,
    run: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(building, "survey", raising(error))
    ran = run("convert", source.path, tmp_path / "out", "--num-proc", 1, "--json")
    assert ran.code == 1
    assert ran.stderr == f"laion6m: {ran.document['error']}\n"
    assert str(error) in ran.stderr
    assert ("ulimit -n" in ran.stderr) == limit


def test_an_error_of_the_system_that_nobody_foresaw_is_not_hidden(
    source: Source, tmp_path: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "survey", raising(OSError(errno.EIO, os.strerror(errno.EIO))))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        run("convert", source.path, tmp_path / "out", "--num-proc", 1)


def test_what_verify_could_not_open_is_no_verdict(
    tmp_path: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = f"source (0.tar): cannot open 0.tar: {os.strerror(errno.EMFILE)}. Give the source that OUT was made from."
    monkeypatch.setattr(verifying, "verify", lambda *_, **__: Verification(False, 7, ("another", problem)))
    ran = run("verify", tmp_path, "--json")
    assert ran.code == 1
    assert list(ran.document) == ["error"]
    assert ran.document["error"].startswith(f"not all was verified: {problem} A process may open")


@pytest.mark.parametrize("command", ["convert", "index"])
@pytest.mark.parametrize(
    ("layout", "given", "meant"),
    [
        ("card", "src/raw", "src"),
        ("card", "src/captions", "src"),
        ("no_listing", "src/raw/", "src"),
        ("extracted", "src/raw", "src"),
        ("card", ".", "./src"),
    ],
)
def test_a_part_of_a_source_or_the_folder_around_it_is_an_error_that_names_the_source(
    command: str,
    layout: str,
    given: str,
    meant: str,
    tmp_path: Path,
    run: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_source(tmp_path / "src", layout)
    monkeypatch.chdir(tmp_path)
    ran = run(command, given, tmp_path / "out", "--num-proc", 1, "--json")
    assert ran.code == 1
    assert f"give {meant} instead" in ran.document["error"]
    assert run(command, meant, tmp_path / "out", "--num-proc", 1).code == 0  # into the same OUT


@pytest.mark.parametrize(("layout", "given"), [("openuni", "raw"), ("img2dataset", ".")])
def test_tars_that_hold_their_annotations_are_a_source_wherever_they_lie(
    layout: str, given: str, tmp_path: Path, run: Callable[..., Ran]
) -> None:
    made = make_source(tmp_path / "src", layout)
    ran = run("convert", made.path / given, tmp_path / "out", "--num-proc", 1, "--json")
    assert json.loads(ran.stdout)["rows"] > 0
