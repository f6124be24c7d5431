"""Resume, slices, locks, interruption: whatever happens to a run, the same command ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from builder.base.errors import (
    InterruptedRunError,
    JobMismatchError,
    ListingError,
    LockedError,
    OptionError,
    OutputError,
    SourceChangedError,
    SourceError,
    WriteError,
)
from builder.base.options import ConvertOptions, SamplePolicy, Slice
from builder.cli.output import LOOK
from builder.conversion import build as building
from builder.conversion import finish as finishing
from builder.conversion import shard as shard_module
from builder.conversion.convert import convert
from builder.conversion.summary import Summary
from builder.plan.survey import Survey
from builder.store import card
from builder.store import ledger as ledgers
from builder.store import output as outputs
from builder.store.ledger import Ledger
from tests.outputs import (
    group_members,
    leftovers,
    make_large_source,
    output_bytes,
    read_rows,
    run_command,
    start,
    wait_until,
)
from tests.sources import make_source

# From 3.12 on, forking a process that has other threads warns; those here are pyarrow's.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

SMALL = ConvertOptions(max_shard_size=1_000_000)
TARS, SHARDS = 6, 12


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve shards of 1 MB, of six tars."""
    folder = tmp_path_factory.mktemp("source") / "src"
    make_large_source(folder, TARS)
    os.truncate(folder / "raw" / "00004.tar", 800_000)
    return folder


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What comes out of one undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "out"
    summary = run(source, out)
    assert summary.totals.shards == summary.did == SHARDS - 1
    assert summary.totals.rejected["tar_damaged"] > 5
    return output_bytes(out)


def run(source: Path, out: Path, part: Slice | None = None, num_proc: int = 1) -> Summary:
    part = part or Slice()
    return convert(source, out, SMALL, start=part.start, end=part.end, num_proc=num_proc, quiet=True)


def receipts(out: Path) -> int:
    return len(list((out / ".laion6m" / "receipts").glob("*.json")))


def command(source: Path, out: Path, *more: object) -> list[object]:
    return ["convert", source, out, "--max-shard-size", "1MB", "--max-reject-ratio", "1", *more]


# Resume


@pytest.mark.slow
def test_a_finished_run_does_nothing_again(source: Path, whole: dict[str, str], tmp_path: Path) -> None:
    first = run(source, tmp_path / "out")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "data").iterdir()}
    again = run(source, tmp_path / "out", num_proc=2)
    assert (again.did, again.totals, again.examples) == (0, first.totals, first.examples)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "data").iterdir()} == stamps
    assert output_bytes(tmp_path / "out") == whole


class Stop(BaseException):
    """What nobody catches: as sudden as Python allows."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "name", "after"),
    [
        (outputs, "publish", 3),  # the first shard is written, but has no name yet: job and plan have theirs
        (outputs, "publish", 4 * 4 + 3),
        (shard_module, "make_receipt", 3),  # it has its name, but no receipt
        (shard_module, "read_samples", 5),
        (ledgers, "write", 0),  # before the job is noted
        (ledgers, "write", 8),  # between the three files of a receipt
        (ledgers, "write", 9),
        (finishing, "write_index", 0),
        (finishing, "write_rejects", 0),
        (card, "write_card", 0),
        (finishing, "write", 1),  # all but the manifest
        (building, "save_survey", 0),
        (building, "survey", 0),
    ],
)
def test_a_run_that_ended_anywhere_is_finished_by_the_next(
    place: object,
    name: str,
    after: int,
    source: Path,
    whole: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = getattr(place, name)
    calls = []

    def stop(*arguments: object, **options: object) -> object:
        calls.append(name)
        if len(calls) > after:
            raise Stop
        return real(*arguments, **options)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(place, name, stop)
        with pytest.raises(Stop):
            run(source, out)
    assert not (out / "meta" / "manifest.json").exists()
    done = receipts(out)
    summary = run(source, out)
    assert summary.did == SHARDS - 1 - done
    assert output_bytes(out) == whole
    assert leftovers(out) == []


def test_a_shard_that_went_away_or_changed_its_size_is_made_again(
    source: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(source, out)
    shards = sorted((out / "data").iterdir())
    shards[1].unlink()
    os.truncate(shards[3], 1000)
    assert run(source, out).did == 2
    assert output_bytes(out) == whole


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plan.arrow", "plan-rejects.arrow", "plan.json", "receipts/00001.json"])
def test_bookkeeping_that_went_away_is_made_again(
    name: str, source: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(source, out)
    (out / ".laion6m" / name).unlink()
    assert run(source, out).did == (1 if "receipts" in name else 0)
    assert output_bytes(out) == whole


# Slices


@pytest.mark.parametrize(
    "slices",
    [
        [(0, 2), (2, 4), (4, -1)],
        [(4, 6), (0, 1), (1, 4)],  # in any order
        [(0, 3), (3, 6), (2, 5)],  # overlapping ones do nothing twice
        [(0, 6)],
        [(0, 100)],
    ],
)
def test_slices_come_to_what_one_run_comes_to(
    slices: list[tuple[int, int]], source: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    summaries = [run(source, out, Slice(*each)) for each in slices]
    assert summaries[-1].complete
    assert sum(summary.did for summary in summaries) == SHARDS - 1
    assert output_bytes(out) == whole
    for summary in summaries:
        totals = summary.to_json()
        assert totals["listed"] == totals["rows"] + sum(totals["rejected"].values())
        assert totals["unlisted"] == 0  # a slice does not know: it speaks of its own shards only


def test_a_slice_names_its_shards_as_the_whole_does(source: Path, whole: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = run(source, out, Slice(2, 3))
    assert sorted(path.name for path in (out / "data").iterdir()) == [
        "train-00004-of-00011.parquet",
        "train-00005-of-00011.parquet",
    ]
    assert (summary.complete, summary.did, summary.missing) == (False, 2, 9)
    assert not (out / "meta").exists()
    assert output_bytes(out).items() <= whole.items()
    assert run(source, out).did == 9
    assert output_bytes(out) == whole


@pytest.mark.parametrize("part", [Slice(2, 2), Slice(0, 0)])
def test_a_slice_of_nothing_does_nothing(part: Slice, source: Path, tmp_path: Path) -> None:
    summary = run(source, tmp_path / "out", part)
    assert (summary.did, summary.totals.rows, summary.totals.listed, summary.complete) == (0, 0, 0, False)


def test_a_slice_behind_the_last_tar_is_an_error_and_leaves_no_out(source: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"start 99: there are .* raw tars, numbered 0 to"):
        run(source, tmp_path / "out", Slice(99))
    assert not (tmp_path / "out").exists()


def test_small_tars_that_share_a_shard_belong_to_the_slice_of_the_first(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    out = tmp_path / "out"
    left = run(source.path, out, Slice(1, 3))
    assert left.did == 0
    assert left.notes == (
        "this slice, tars 1 to 2 of 3, makes no shard of 1",
        "00001.tar lies in shard 0, which the slice with 00000.tar makes: "
        "tars that fit together share a shard (--max-shard-size)",
    )
    made = run(source.path, out, Slice(0, 1))
    assert made.complete
    assert made.notes == (
        "this slice, tar 0 of 3, makes shard 0 of 1",
        "shard 0 also holds 00002.tar, which is behind the slice: "
        "tars that fit together share a shard (--max-shard-size)",
    )
    assert [row.key for row in read_rows(out)] == list(source.rows)


@pytest.mark.slow
def test_slices_at_the_same_time_share_the_work(source: Path, whole: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    slices = [("0", "2"), ("2", "4"), ("4", "-1")]
    runs = [start(*command(source, out, "--num-proc", 1, "--json", "--start", i, "--end", j)) for i, j in slices]
    documents = []
    for process in runs:
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == LOOK, stderr  # one tar is damaged
        documents.append(json.loads(stdout))
    assert sum(document["shards"] for document in documents) == SHARDS - 1
    assert output_bytes(out) == whole
    assert leftovers(out) == []


# Two runs, one OUT


@pytest.mark.slow
def test_a_second_run_is_refused_while_the_first_one_works(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(ledgers, "_PATIENCE", 0.3)
    with Ledger(str(out)).locked(0, TARS):
        with pytest.raises(LockedError, match=f"process {os.getpid()} on"):
            run(source, out)
        with pytest.raises(LockedError):
            run(source, out, Slice(3, 4))
    with Ledger(str(out)).locked(0, 3):
        with pytest.raises(LockedError):
            run(source, out, Slice(2, 4))
        assert run(source, out, Slice(3, 4)).did == 2
    assert run(source, out).complete


@pytest.mark.slow
def test_a_lock_whose_holder_was_killed_is_none(source: Path, whole: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(*command(source, out, "--num-proc", 2))
    wait_until(lambda: (out / ".laion6m" / "locks" / "0-6").exists())
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert (out / ".laion6m" / "locks" / "0-6").exists()
    assert run(source, out).complete
    assert output_bytes(out) == whole


# Another job


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(512))


def rewrite_listing(source: Path) -> None:
    (source / "data.json").write_text("[]")


@pytest.mark.parametrize(
    ("options", "change", "words"),
    [
        (ConvertOptions(), None, "options.max_shard_size was 1000000, is 500000000"),
        (ConvertOptions(max_shard_size=10**6, format="arrow"), None, 'options.format was "parquet", is "arrow"'),
        (
            ConvertOptions(max_shard_size=10**6, policy=SamplePolicy(min_side=64)),
            None,
            "options.policy.min_side was null, is 64",
        ),
        (SMALL, rewrite_listing, "the listing was changed: data.json"),
        (
            SMALL,
            lambda source: append(source / "raw" / "00001.tar"),
            "1 archive of raw/ is changed, such as 00001.tar",
        ),
        (
            SMALL,
            lambda source: (source / "captions" / "00001.tar").unlink(),
            "1 archive of captions/ is gone",
        ),
    ],
)
def test_another_job_on_the_same_out_is_refused_with_what_differs(
    options: ConvertOptions, change: Callable[[Path], None] | None, words: str, tmp_path: Path
) -> None:
    source = make_source(tmp_path / "src").path
    out = tmp_path / "out"
    run(source, out)
    before = output_bytes(out)
    if change:
        change(source)
    with pytest.raises(JobMismatchError) as caught:
        convert(str(source), str(out), options, num_proc=1, quiet=True)
    assert words in str(caught.value)
    assert "choose another OUT" in str(caught.value)
    assert output_bytes(out) == before


def test_a_listing_that_was_mended_is_no_other_job(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src").path
    sound = (source / "data.json").read_bytes()
    (source / "data.json").write_bytes(sound[: len(sound) // 2])
    with pytest.raises(ListingError):
        run(source, tmp_path / "out")
    (source / "data.json").write_bytes(sound)
    assert run(source, tmp_path / "out").totals.rows == 24


def edited(path: Path) -> None:
    """The same size, another content."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("side", ["raw", "captions"])
@pytest.mark.parametrize(
    "change",
    [edited, Path.unlink, lambda path: (path.parent / "new.json").write_text("{}")],
    ids=["edited", "gone", "new"],
)
def test_extracted_files_that_changed_make_it_another_job(
    side: str, change: Callable[[Path], object], tmp_path: Path
) -> None:
    source = make_source(tmp_path / "src", "extracted").path
    run(source, tmp_path / "out")
    assert run(source, tmp_path / "out").did == 0
    folders = sorted((source / side).iterdir())
    change(min(path for path in folders[-1].rglob("*") if path.is_file()))
    with pytest.raises(JobMismatchError, match=rf"files in 1 folder were changed.* {side}/{folders[-1].name}"):
        run(source, tmp_path / "out")


def test_an_extracted_file_that_changes_during_the_run_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_source(tmp_path / "src", "extracted").path
    real = building.survey

    def survey(*args: Any, **rest: Any) -> Survey:
        made = real(*args, **rest)
        edited(min(path for path in (source / "captions").rglob("*.json")))
        return made

    monkeypatch.setattr(building, "survey", survey)
    with pytest.raises(SourceChangedError, match=r"captions/0.*changed, added or removed"):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out" / "meta" / "manifest.json").exists()


def test_an_out_with_shards_of_somebody_else_is_refused(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src").path
    (tmp_path / "out" / "data").mkdir(parents=True)
    (tmp_path / "out" / "data" / "mine.parquet").write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"holds data/, but not \.laion6m/.*Choose another OUT, or remove"):
        run(source, tmp_path / "out")
    assert (tmp_path / "out" / "data" / "mine.parquet").read_bytes() == b"precious"


def test_a_source_moved_as_it_is_goes_on(source: Path, whole: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(source, out, Slice(0, 2))
    (tmp_path / "moved").symlink_to(source)
    assert run(tmp_path / "moved", out).did == SHARDS - 1 - 4
    assert output_bytes(out) == whole


# Where OUT must not be


@pytest.mark.parametrize(
    "place", ["src", "src/raw", "src/raw/deep/out", "src/captions", "src/data.json", "src/data", "src/meta", "link"]
)
def test_an_out_within_the_source_is_refused(place: str, tmp_path: Path) -> None:
    source = make_source(tmp_path / "src").path
    (tmp_path / "link").symlink_to(source / "raw")
    before = sorted(source.rglob("*"))
    with pytest.raises(SourceError, match="lies in the source"):
        run(source, tmp_path / place)
    assert sorted(source.rglob("*")) == before


def test_an_out_within_what_the_source_links_to_is_refused(tmp_path: Path) -> None:
    real = make_source(tmp_path / "real").path
    (tmp_path / "src").mkdir()
    for name in ("raw", "captions", "data.json"):
        (tmp_path / "src" / name).symlink_to(real / name)
    with pytest.raises(SourceError, match="lies in the source"):
        run(tmp_path / "src", real / "raw" / "out")


def test_an_out_beside_raw_is_allowed(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    assert run(source.path, source.path / "converted").complete
    assert run(source.path, tmp_path / "out").totals.rows == 24


@pytest.mark.parametrize("way", ["out", "out/data", "out/meta", "out/.laion6m", "out/.laion6m/tmp", "out/README.md/x"])
def test_what_stands_in_the_way_of_writing_is_named(way: str, tmp_path: Path) -> None:
    source = make_source(tmp_path / "src").path
    (tmp_path / way).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / way).write_text("in the way")
    with pytest.raises(WriteError, match=r"cannot write .*/out.*run the same command"):
        run(source, tmp_path / "out")
    assert (tmp_path / way).read_text() == "in the way"
    assert not (tmp_path / "out" / "meta" / "manifest.json").exists()
    (tmp_path / way).unlink()
    if way == "out/README.md/x":
        (tmp_path / "out/README.md").rmdir()
    assert run(source, tmp_path / "out").complete


@pytest.mark.parametrize("num_proc", [0, -5])
def test_fewer_than_one_process_is_an_error(num_proc: int, tmp_path: Path) -> None:
    source = make_source(tmp_path / "src").path
    with pytest.raises(OptionError, match="num_proc"):
        run(source, tmp_path / "out", num_proc=num_proc)


# Signals


@pytest.fixture(scope="module")
def seconds(source: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """How long an undisturbed run takes here."""
    started = time.monotonic()
    assert (
        run_command(*command(source, tmp_path_factory.mktemp("timed") / "out", "--num-proc", 2)).code == LOOK
    )  # a tar is cut
    return time.monotonic() - started


def end_group(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it said; fails if anything of it lives on."""
    try:
        said = process.communicate(timeout=30)
        wait_until(lambda: not group_members(process.pid))
    finally:
        if group_members(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    return said


def run_and_stop(
    line: list[object], tmp_path: Path, ready: Callable[[Path], object], stop: Callable[[subprocess.Popen[str]], None]
) -> tuple[Path, int, str, str]:
    """A run that is stopped when its OUT is ``ready``: its OUT, exit code, stdout and stderr. If it has ended by then,
    because this process had to wait for the machine, another run is begun."""
    for attempt in range(10):
        out = tmp_path / f"out{attempt}"
        process = start(*(str(word).format(out.name) for word in line), leaks=False)
        wait_until(lambda out=out, process=process: ready(out) or has_ended(process))  # type: ignore[misc]
        stop(process)
        stdout, stderr = end_group(process)
        if process.returncode not in (0, LOOK):
            break
    return out, process.returncode, stdout, stderr


def has_ended(process: subprocess.Popen[str]) -> bool:
    """Without taking note of it, so that its process id stays its own."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def moments(count: int) -> list[float]:
    """Shares of a run's time, one in each stretch of it."""
    rng = random.Random(6)
    return [(number + rng.random()) / count for number in range(count)]


@pytest.mark.parametrize(
    "share",
    [pytest.param(share, marks=pytest.mark.slow if number % 3 else ()) for number, share in enumerate(moments(6))],
)
def test_a_run_killed_at_any_moment_is_finished_by_the_next(
    share: float, source: Path, whole: dict[str, str], seconds: float, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(*command(source, out, "--num-proc", 2))
    time.sleep(seconds * share)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = receipts(out)
    summary = run(source, out)
    assert summary.did == SHARDS - 1 - done
    assert output_bytes(out) == whole
    assert leftovers(out) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("everybody", [True, False])
@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_run_told_to_stop_says_how_to_go_on_and_leaves_nothing_behind(
    number: int, everybody: bool, num_proc: int, source: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    def stop(process: subprocess.Popen[str]) -> None:
        (os.killpg if everybody else os.kill)(process.pid, number)

    line = command(source, tmp_path / "{}", "--num-proc", num_proc, "--json")
    out, code, stdout, stderr = run_and_stop(line, tmp_path, lambda out: receipts(out) >= 2, stop)
    assert code == 130, stderr
    assert stderr == f"laion6m: {json.loads(stdout)['error']}\n"
    assert "Traceback" not in stderr
    assert "Run the same command again" in stderr
    assert len(stderr.splitlines()) == 1
    assert receipts(out) >= 2
    assert run(source, out).complete
    assert output_bytes(out) == whole
    assert leftovers(out) == []


@pytest.mark.slow
@pytest.mark.parametrize("reached", ["locks", "job.json", "plan.json"])
def test_an_early_interrupt_is_no_traceback_either(reached: str, source: Path, tmp_path: Path) -> None:
    def stop(process: subprocess.Popen[str]) -> None:
        os.killpg(process.pid, signal.SIGINT)

    line = command(source, tmp_path / "{}", "--num-proc", 2)
    _, code, _, stderr = run_and_stop(line, tmp_path, lambda out: (out / ".laion6m" / reached).exists(), stop)
    # Python ends as the signal would end it when the interrupt came during an import: for a shell both are 130.
    assert code in (130, -signal.SIGINT), stderr
    assert "Traceback" not in stderr


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    return [member for member in group_members(process.pid) if member != process.pid]


@pytest.mark.slow
def test_a_worker_killed_alone_is_an_error_that_names_its_tar(
    source: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    def stop(process: subprocess.Popen[str]) -> None:
        for worker in workers_of(process)[:1]:
            os.kill(worker, signal.SIGKILL)

    line = command(source, tmp_path / "{}", "--num-proc", 2, "--json")
    out, code, stdout, stderr = run_and_stop(line, tmp_path, lambda out: receipts(out) >= 1, stop)
    assert code == 1
    assert json.loads(stdout)["error"] in stderr
    assert "Traceback" not in stderr
    assert "SIGKILL" in stderr
    assert "smaller --num-proc" in stderr
    assert any(f"{number:05d}.tar" in stderr for number in range(TARS))
    assert run(source, out).complete
    assert output_bytes(out) == whole
    assert leftovers(out) == []


@pytest.mark.slow
def test_orphans_of_a_killed_parent_end_and_the_next_run_finishes(
    source: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(*command(source, out, "--num-proc", 2))
    wait_until(lambda: receipts(out) >= 1)
    process.kill()
    end_group(process)
    assert run(source, out).complete
    assert output_bytes(out) == whole
    assert leftovers(out) == []


# Errors in between


def test_an_interrupt_tells_how_far_the_run_got(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> Iterator[object]:
        if receipts(tmp_path / "out") == 3:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[no-any-return]

    real = shard_module.read_samples
    monkeypatch.setattr(shard_module, "read_samples", interrupt)
    with pytest.raises(InterruptedRunError) as caught:
        run(source, tmp_path / "out")
    assert caught.value.args == (3, SHARDS - 1)


def test_an_error_of_one_shard_keeps_the_others(
    source: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = outputs.publish

    def refuse(temporary: str, final: str, *, sync: bool) -> None:
        if "data/train-00006" in final:
            raise WriteError(final, "No space left on device")
        real(temporary, final, sync=sync)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "publish", refuse)
        with pytest.raises(WriteError, match="No space left"):
            run(source, out)
    assert receipts(out) == 6
    assert run(source, out).did == SHARDS - 1 - 6
    assert output_bytes(out) == whole


def test_the_source_is_never_written_to(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in source.path.rglob("*")}
    run(source.path, tmp_path / "out")
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in source.path.rglob("*")} == before
