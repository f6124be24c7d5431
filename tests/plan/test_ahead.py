"""Scanners that are at work before the libraries are there: what they find is what a scan finds, or it is not there."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from builder.base.errors import SourceError
from builder.base.options import ConvertOptions
from builder.conversion.convert import convert
from builder.conversion.index import index
from builder.engines.local import SerialEngine
from builder.plan import ahead as ahead_module
from builder.plan.ahead import Ahead, scan_ahead, scan_requests
from builder.plan.survey import scan_all, shard_rows, survey
from builder.source.layouts import recognise
from builder.source.scan import Scanned, ScanRequest, scan_members
from tests.outputs import output_bytes, run_python, wait_until
from tests.sources import LAYOUTS, faults_of, make_source

TARS = [layout for layout in LAYOUTS if layout != "extracted"]


@pytest.fixture
def too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if numpy had not been imported yet: here it was."""
    monkeypatch.setattr(ahead_module, "_IMPORTED", "a module that nobody imports")


def requests_of(path: Path) -> list[ScanRequest]:
    return scan_requests(recognise(str(path)), shapes=True)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("layout", ["card", "openuni"])
@pytest.mark.parametrize("processes", [1, 2, 3, 50])
def test_what_scanners_find_is_what_a_scan_finds(layout: str, processes: int, tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", layout, faults=faults_of(layout), shards=4)
    requests = requests_of(source.path)
    with Ahead(requests, processes) as ahead:
        found = dict(ahead.scanned())
    assert found == {request: scan_members(request) for request in requests}


def test_an_archive_that_cannot_be_scanned_is_left_to_who_can_say_why(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", shards=3)
    layout = recognise(str(source.path))
    requests = scan_requests(layout, shapes=False)
    (source.path / "raw" / "00001.tar").unlink()
    with Ahead(requests, 2) as ahead:
        found = dict(ahead.scanned())
    assert set(requests) - set(found) == {requests[1]}
    with Ahead(requests, 2) as ahead, pytest.raises(SourceError, match=r"cannot open .*00001\.tar"):
        scan_all(layout, SerialEngine(), ahead=ahead)


def test_what_a_killed_scanner_owes_is_scanned_by_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path / "src", shards=4)
    layout, me = recognise(str(source.path)), os.getpid()
    whole = survey(layout, ConvertOptions(), SerialEngine())
    done: list[ScanRequest] = []

    def scan(request: ScanRequest) -> Scanned:
        if os.getpid() != me and done:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(request)
        return scan_members(request)

    monkeypatch.setattr(ahead_module, "scan_members", scan)
    requests = scan_requests(layout, shapes=False)
    with Ahead(requests, 2) as ahead:
        found = list(ahead.scanned())
    assert len(found) == 2  # one of each scanner
    with Ahead(requests, 2) as ahead:
        again = survey(layout, ConvertOptions(), SerialEngine(), ahead=ahead)
    assert again.plan.bounds == whole.plan.bounds
    for number in range(whole.plan.shards):
        assert shard_rows(again, number)[0].equals(shard_rows(whole, number)[0])
    assert again.plan.rejects.equals(whole.plan.rejects)


def test_what_nobody_has_begun_is_left_to_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path / "src", shards=4)
    requests, (go, ready) = requests_of(source.path), (os.pipe(), os.pipe())

    def scan(request: ScanRequest) -> Scanned:
        os.write(ready[1], b"!")
        os.read(go[0], 1)
        return scan_members(request)

    monkeypatch.setattr(ahead_module, "scan_members", scan)
    with Ahead(requests, 2) as ahead:
        for _ in range(2):  # both have one in hand
            os.read(ready[0], 1)
        begun = ahead.begun()
        os.write(go[1], b"!!")
        found = dict(ahead.scanned())
    assert begun == set(found) == set(sorted(requests, key=lambda request: -request.archive.size)[:2])
    for end in (*go, *ready):
        os.close(end)


def test_of_more_archives_than_a_pipe_holds_numbers_the_rest_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_source(tmp_path / "src", shards=1)
    request = requests_of(source.path)[0]
    archive = request.archive
    many = [ScanRequest(replace(archive, size=archive.size + number)) for number in range(20_000)]
    with Ahead(many, 0) as ahead:
        assert len(ahead._requests) == 16_384
        assert ahead.begun() == set()

    real = os.pipe

    def small() -> tuple[int, int]:  # as who has many pipes gets them
        ends = real()
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, 4096)
        return ends

    monkeypatch.setattr(os, "pipe", small)
    with Ahead(many, 0) as ahead:
        assert len(ahead._requests) == 1024
        assert ahead.begun() == set()


def test_where_there_is_no_process_to_spare_the_engine_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path / "src", shards=2)
    layout, real, left = recognise(str(source.path)), os.fork, [0]

    def fork() -> int:
        if not left:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        left.pop()
        return real()

    monkeypatch.setattr(os, "fork", fork)
    before = len(os.listdir("/proc/self/fd"))
    with Ahead(scan_requests(layout, shapes=False), 3) as ahead:
        assert len(ahead._scanners) == 1
        assert len(scan_all(layout, SerialEngine(), ahead=ahead)) == 4
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_message_cut_off_by_a_kill_is_no_message() -> None:
    message = (3).to_bytes(8, "little") + b"abc"
    pending = bytearray(message + message[:5])
    assert list(ahead_module._messages(pending)) == [b"abc"]
    assert pending == message[:5]


def test_a_tar_that_changed_after_its_scan_is_scanned_again(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", shards=2)
    with Ahead(requests_of(source.path), 2) as ahead:
        stale = dict(ahead.scanned())
    tar = source.path / "raw" / "00000.tar"
    os.utime(tar, ns=(0, 1))
    layout = recognise(str(source.path))
    scanned: list[str] = []

    class Noting(SerialEngine):
        def run(self, work, tasks, report):  # type: ignore[no-untyped-def]
            taken = list(tasks)
            scanned.extend(task.archive.path for task in taken)
            return super().run(work, taken, report)

    class Stale(Ahead):
        def begun(self) -> set[ScanRequest]:
            return set(stale)

        def scanned(self) -> Iterator[tuple[ScanRequest, Scanned]]:
            yield from stale.items()

    scan_all(layout, Noting(), shapes=True, ahead=Stale([], 0))
    assert scanned == [str(tar)]


def test_scanners_are_gone_when_nobody_wants_to_know_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path / "src", shards=4)
    large = Scanned(b"x" * (4 << 20), *[b""] * 5, 0, (), None)  # type: ignore[arg-type] # more than a pipe holds
    monkeypatch.setattr(ahead_module, "scan_members", lambda request: large)
    with Ahead(requests_of(source.path), 3) as ahead:
        processes = list(ahead._scanners.values())
        assert len(processes) == 3
        assert all(map(is_alive, processes))  # blocked: nobody reads
    assert not any(map(is_alive, processes))


def test_scanners_stop_when_their_parent_is_gone(tmp_path: Path) -> None:
    make_source(tmp_path / "src", shards=4)
    ran = run_python(
        """
        import os, signal, sys, time
        from builder.plan import ahead
        ahead.scan_members = lambda request: time.sleep(0.2)
        mine = ahead.scan_ahead(sys.argv[1], (), 3, shapes=True)
        print(*mine._scanners.values(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path / "src",
    )
    processes = [int(number) for number in ran.stdout.split()]
    assert len(processes) == 2
    wait_until(lambda: not any(map(is_alive, processes)))


@pytest.mark.usefixtures("too_early")
@pytest.mark.parametrize(
    ("source", "recaptions", "num_proc"),
    [
        ("s3://bucket/laion6m", (), 2),
        ("nowhere", (), 2),  # which recognise will say again, to somebody
        ("src", ("captions.parquet",), 2),  # takes pyarrow to know what to scan for
        ("src", (), 1),
        ("extracted", (), 2),  # folders: nothing to scan
    ],
)
def test_where_nothing_is_gained_nobody_is_ahead(
    source: str, recaptions: tuple[str, ...], num_proc: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_source(tmp_path / "src")
    make_source(tmp_path / "extracted", "extracted")
    monkeypatch.chdir(tmp_path)
    with scan_ahead(source, recaptions, num_proc, shapes=True) as ahead:
        assert ahead._scanners == {}
        assert list(ahead.scanned()) == []


def test_where_numpy_is_there_already_nobody_is_ahead(tmp_path: Path) -> None:
    make_source(tmp_path / "src")
    assert "numpy" in sys.modules
    with scan_ahead(str(tmp_path / "src"), (), 2, shapes=True) as ahead:
        assert ahead._scanners == {}


@pytest.mark.parametrize("command", ["index", "convert"])
@pytest.mark.parametrize("layout", TARS)
def test_a_command_with_scanners_ahead_makes_what_it_makes_without(layout: str, command: str, tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", layout, faults=faults_of(layout), shards=3)
    options = ["--recaptions", *source.recaptions] if source.recaptions else []
    make = {"index": index, "convert": convert}[command]
    make(str(source.path), str(tmp_path / "plain"), ConvertOptions(recaptions=source.recaptions), num_proc=1)
    ran = run_python(
        """
        import sys
        from builder.cli import commands as cli
        from builder.plan import ahead
        before = ahead.scan_ahead
        def scan_ahead(*arguments, **options):
            scanners = before(*arguments, **options)
            print(len(scanners._scanners), "scanners")
            return scanners
        begun = ahead.Ahead.begun
        def noting(self):
            found = begun(self)
            print(len(found) > 0)
            return found
        ahead.scan_ahead, ahead.Ahead.begun = scan_ahead, noting
        sys.exit(cli.main([*sys.argv[1:], "--num-proc", "3", "--max-reject-ratio", "1"]))
        """,
        command,
        source.path,
        tmp_path / "ahead",
        *options,
    )
    assert (ran.code, ran.stderr.count("Traceback")) == (0, 0), ran.stderr
    assert ran.stdout == ("0 scanners\nFalse\n" if source.recaptions else "2 scanners\nTrue\n")
    assert output_bytes(tmp_path / "ahead") == output_bytes(tmp_path / "plain")


def test_a_conversion_that_goes_on_has_its_plan_and_nobody_is_ahead(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    script = """
        import sys
        from builder.cli import commands as cli
        from builder.plan import ahead
        ahead.scan_ahead = lambda *arguments, **options: print("ahead") or ahead.Ahead([], 0)
        sys.exit(cli.main(["convert", *sys.argv[1:], "--num-proc", "2"]))
    """
    assert run_python(script, source.path, tmp_path / "out").stdout == "ahead\n"
    assert run_python(script, source.path, tmp_path / "out").stdout == ""


def test_nothing_heavy_is_imported_before_the_scanners_are_at_work(tmp_path: Path) -> None:
    make_source(tmp_path / "src")
    ran = run_python(
        """
        import sys
        from builder.cli import commands as cli
        from builder.plan import ahead
        with ahead.scan_ahead(sys.argv[1], (), 3, shapes=True) as scanners:
            print(len(scanners._scanners), sorted({"numpy", "pyarrow", "multiprocess"} & set(sys.modules)))
        """,
        tmp_path / "src",
    )
    assert ran.stdout == "2 []\n"


def test_a_caller_that_ignores_the_end_of_children_changes_nothing(too_early: None, tmp_path: Path) -> None:
    source = make_source(tmp_path / "src").path
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with scan_ahead(str(source), (), 2, shapes=False) as scanners:
            assert len(list(scanners.scanned())) == len(requests_of(source))
    finally:
        signal.signal(signal.SIGCHLD, before)
