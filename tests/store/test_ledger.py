"""The ledger: what a job is, which shards are done, and who is at work."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from builder.base.arrays import string_array
from builder.base.errors import DamagedFileError, JobMismatchError, LockedError, OutputError, WriteError
from builder.base.names import PLAN
from builder.store import ledger as module
from builder.store.ledger import Ledger, Receipt, describe_differences
from builder.store.output import write_whole

ROOT = Path(__file__).parents[2]

JOB: dict[str, Any] = {
    "source": {"layout": "card", "raw": {"00000.tar": [512, 1]}},
    "options": {"format": "parquet", "policy": {"min_side": None}, "recaptions": []},
    "versions": {"pyarrow": "26.0.0"},
}


def batch(*texts: str) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([string_array(list(texts))], names=["text"])


def receipt(number: int, **changes: Any) -> Receipt:
    facts: dict[str, Any] = {"rows": 5, "image_bytes": 500, "size": 900, "digest": "ab" * 16, "check": {"size": 900}}
    return Receipt(number, **(facts | changes))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "out"))


# --- jobs ---


def test_a_job_is_begun_once_and_recognised(ledger: Ledger) -> None:
    assert ledger.job is None
    ledger.begin(JOB)
    assert ledger.job == JOB
    ledger.begin(json.loads(json.dumps(JOB)))
    ledger.begin({**JOB, "options": {**JOB["options"], "recaptions": ()}})  # a tuple is what JSON makes a list of


def changed(**changes: Any) -> dict[str, Any]:
    return {**JOB, **changes}


def note_plan(ledger: Ledger) -> None:
    """With a plan, a job has come to something."""
    write_whole(ledger.create(PLAN), [b"{}"])


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (changed(options={**JOB["options"], "format": "arrow"}), ['options.format was "parquet", is "arrow"']),
        (
            changed(options={**JOB["options"], "policy": {"min_side": 64}}),
            ["options.policy.min_side was null, is 64"],
        ),
        (
            changed(source={"layout": "openuni", "raw": {"00000.tar": [512, 2]}}),
            ['source.layout was "card", is "openuni"', "source.raw.00000.tar was [512, 1], is [512, 2]"],
        ),
        (changed(versions={"pyarrow": "27.0.0"}), ['versions.pyarrow was "26.0.0", is "27.0.0"']),
    ],
)
def test_another_job_is_refused_with_what_differs(ledger: Ledger, now: dict[str, Any], words: list[str]) -> None:
    ledger.begin(JOB)
    note_plan(ledger)
    with pytest.raises(JobMismatchError) as caught:
        ledger.begin(now)
    assert caught.value.args == (ledger.out, words)
    assert all(word in str(caught.value) for word in words)
    assert ledger.job == JOB  # and the old one stands


def test_a_job_that_came_to_nothing_gives_way_to_the_next(ledger: Ledger) -> None:
    ledger.begin(JOB)
    ledger.begin(changed(options={}))
    assert ledger.job == changed(options={})


def test_a_job_that_somebody_is_at_does_not_give_way(ledger: Ledger) -> None:
    other = Ledger(ledger.out)
    ledger.begin(JOB)
    with other.locked(5, 6), ledger.locked(0, 5), pytest.raises(JobMismatchError):
        ledger.begin(changed(options={}))
    with ledger.locked(0, 5):  # its own lock is not in its way
        ledger.begin(changed(options={}))


@pytest.mark.parametrize("left", ["receipts/00000.json", "passed/00000.json", "scans/raw-00000.arrow", "../data/x"])
def test_a_job_that_left_anything_does_not_give_way(ledger: Ledger, left: str) -> None:
    ledger.begin(JOB)
    Path(ledger.path(left)).parent.mkdir(exist_ok=True)
    Path(ledger.path(left)).write_bytes(b"{}")
    with pytest.raises(JobMismatchError):
        ledger.begin(changed(options={}))


def test_many_differences_are_counted_not_listed() -> None:
    before = {"source": {"raw": {f"{i:05d}.tar": [i, 0] for i in range(40)}}, "x": 1}
    now = {"source": {"raw": {f"{i:05d}.tar": [i, 1] for i in range(40)}}, "x": 2}
    words = describe_differences(before, now)
    assert len(words) == 6
    assert words[0] == "source.raw.00000.tar was [0, 0], is [0, 1]"
    assert words[-1] == "and 36 more"


@pytest.mark.parametrize(("count", "last"), [(5, "k4 was 0, is 1"), (6, "and 1 more")])
def test_five_differences_are_listed(count: int, last: str) -> None:
    words = describe_differences({f"k{i}": 0 for i in range(count)}, {f"k{i}": 1 for i in range(count)})
    assert words[-1] == last


def test_long_values_are_shortened() -> None:
    [words] = describe_differences({"names": ["x" * 500]}, {"names": None})
    assert len(words) < 120
    assert words.endswith("is null")


def test_equal_jobs_do_not_differ() -> None:
    assert describe_differences(JOB, json.loads(json.dumps(JOB))) == []


def test_data_of_somebody_else_is_not_written_over(ledger: Ledger) -> None:
    (Path(ledger.out) / "data").mkdir(parents=True)
    ledger.begin(JOB)  # an empty folder is nobody's
    shutil.rmtree(ledger.path())
    (Path(ledger.out) / "data/train-00000-of-00001.parquet").write_text("")
    with pytest.raises(OutputError, match=r"holds data/, but not \.laion6m/"):
        ledger.begin(JOB)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_damaged_job_is_an_error_that_names_its_file(ledger: Ledger, text: bytes) -> None:
    ledger.begin(JOB)
    Path(ledger.path("job.json")).write_bytes(text)
    with pytest.raises(DamagedFileError, match=r"job\.json"):
        ledger.begin(JOB)


def test_a_job_that_is_no_object_is_another_job(ledger: Ledger) -> None:
    ledger.begin(JOB)
    note_plan(ledger)
    Path(ledger.path("job.json")).write_bytes(b"[]")
    with pytest.raises(JobMismatchError):
        ledger.begin(JOB)


# --- receipts ---


def test_receipts_come_back(ledger: Ledger) -> None:
    assert ledger.receipts() == {}
    written = [
        receipt(3, rejected={"duplicate": 2}, formats={"JPEG": 4, "PNG": 1}, animated=1),
        receipt(0),
        receipt(123_456),  # more digits than its file's name is padded to
    ]
    returned = [
        ledger.write_receipt(item, batch("index", str(item.number)), batch("rejects", str(item.number)))
        for item in written
    ]
    assert ledger.receipts() == {item.number: item for item in written}
    for item in (*returned, *ledger.receipts().values()):
        assert ledger.index_part(item).to_pylist() == [{"text": "index"}, {"text": str(item.number)}]
        assert ledger.rejects_part(item).to_pylist()[0] == {"text": "rejects"}


def test_a_receipt_is_the_last_thing_written_of_its_shard(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in between, the shard is not done; a receipt without its index rows would lose them."""
    order: list[str] = []
    real = module.write

    def noted(folder: Any, name: str, *rest: Any) -> str:
        order.append(os.path.basename(name))
        return real(folder, name, *rest)

    monkeypatch.setattr(module, "write", noted)
    ledger.write_receipt(receipt(7), batch("i"), batch("r"))
    assert order == ["00007.index.arrow", "00007.rejects.arrow", "00007.json"]


@pytest.mark.parametrize("missing", ["json"])
def test_without_its_json_a_shard_is_not_done(ledger: Ledger, missing: str) -> None:
    ledger.write_receipt(receipt(7), batch("i"), batch("r"))
    os.unlink(ledger.path("receipts", f"00007.{missing}"))
    assert ledger.receipts() == {}


def test_a_temporary_receipt_is_none(ledger: Ledger) -> None:
    ledger.write_receipt(receipt(7), batch("i"), batch("r"))
    os.rename(ledger.path("receipts", "00007.json"), ledger.path("receipts", "00007.json.tmp"))
    assert ledger.receipts() == {}


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"null", b"[]", b"7", b"\xff", b'{"number": 7}', b'{"number": 7, "colour": "red"}', b"[" * 100_000],
    ids=lambda text: repr(text[:20]),
)
def test_a_damaged_receipt_says_what_to_do(ledger: Ledger, text: bytes) -> None:
    ledger.write_receipt(receipt(7), batch("i"), batch("r"))
    Path(ledger.path("receipts", "00007.json")).write_bytes(text)
    with pytest.raises(DamagedFileError, match=r"00007\.json.*remove it to do its shard again"):
        ledger.receipts()


def test_any_flipped_bit_of_a_receipt_is_noticed(ledger: Ledger) -> None:
    ledger.write_receipt(receipt(7), batch("i"), batch("r"))
    path = Path(ledger.path("receipts", "00007.json"))
    data = path.read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(DamagedFileError):
            ledger.receipts()
    path.write_bytes(data)
    assert ledger.receipts() == {7: receipt(7)}


@pytest.mark.parametrize("part", ["index", "rejects"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "garbage", "a bit"])
def test_damaged_parts_of_a_receipt_are_damaged_files(ledger: Ledger, part: str, damage: str) -> None:
    noted = ledger.write_receipt(receipt(7), batch("i" * 1000), batch("r" * 1000))
    path = Path(ledger.path("receipts", f"00007.{part}.arrow"))
    data = path.read_bytes()
    path.unlink()
    flipped = data.replace(b"iii", b"iij").replace(b"rrr", b"rrs")  # Arrow has no checksum of its own
    changed = {"empty": b"", "cut": data[: len(data) // 2], "garbage": b"\x17" * 200, "a bit": flipped}
    if damage != "missing":
        path.write_bytes(changed[damage])
    with pytest.raises(DamagedFileError, match=rf"00007\.{part}\.arrow.*remove .*00007\.json to do its shard again"):
        ledger.index_part(noted) if part == "index" else ledger.rejects_part(noted)


def test_clearing_forgets_the_job_but_not_who_is_at_work(ledger: Ledger) -> None:
    with ledger.locked(0, 1):
        ledger.begin(JOB)
        ledger.write_receipt(receipt(7), batch("i"), batch("r"))
        ledger.create("half").write([b"half"])
        ledger.clear()
        ledger.clear()
        assert (ledger.job, ledger.receipts()) == (None, {})
        assert sorted(os.listdir(ledger.path())) == ["locks"]
        assert "0-1" in os.listdir(ledger.path("locks"))


def test_temporary_files_lie_on_the_same_disk_and_can_be_cleared(ledger: Ledger) -> None:
    file = ledger.create("x")
    assert [name.startswith(".laion6m-x.") for name in os.listdir(ledger.path("tmp"))] == [True]
    ledger.clear_temporary()
    ledger.clear_temporary()
    assert not os.path.exists(ledger.path("tmp"))
    file.abort()


# --- locks ---

HOLD = """
import sys, time
from builder.store.ledger import Ledger
with Ledger(sys.argv[1]).locked(int(sys.argv[2]), int(sys.argv[3])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(ledger: Ledger, first: int, last: int) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds archives ``first`` to ``last``."""
    command = [sys.executable, "-c", HOLD, ledger.out, str(first), str(last)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_what_another_process_holds_is_refused_and_what_it_does_not_is_given(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.0)
    with holder(ledger, 4, 8) as process:
        for first, last in [(4, 8), (0, 5), (7, 9), (5, 6), (0, 100)]:
            with pytest.raises(LockedError) as caught, ledger.locked(first, last):
                pass
            assert caught.value.args[0] == ledger.out
            assert caught.value.args[1].startswith(f"process {process.pid} on ")
        for first, last in [(0, 4), (8, 9), (8, 100)]:
            with ledger.locked(first, last):
                pass
    assert [name for name in os.listdir(ledger.path("locks")) if name not in ("guard", "4-8")] == []


def test_what_somebody_left_among_the_locks_is_none(ledger: Ledger) -> None:
    with ledger.locked(0, 1):
        Path(ledger.path("locks", "0-1 (conflict)")).touch()
        Path(ledger.path("locks", "a-b")).touch()
    with ledger.locked(0, 1):
        pass


def test_a_lock_goes_with_its_process_however_that_ends(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.0)
    with holder(ledger, 0, 4) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert os.path.exists(ledger.path("locks", "0-4"))  # its file stays behind, and means nothing
        for first, last in [(0, 4), (2, 3), (0, 9)]:
            with ledger.locked(first, last):
                pass


def test_a_run_waits_for_one_that_is_about_to_end(ledger: Ledger) -> None:
    """Workers of a killed run hold its lock until they notice."""
    with holder(ledger, 0, 4) as process:
        time.sleep(0.1)
        process.kill()
        with ledger.locked(0, 4):
            pass


def test_two_of_one_process_exclude_each_other_too(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.0)
    with ledger.locked(0, 4):
        with Ledger(ledger.out).locked(4, 5):
            pass
        with pytest.raises(LockedError), Ledger(ledger.out).locked(3, 5):
            pass
    with Ledger(ledger.out).locked(3, 5):
        pass


def test_a_lock_is_given_back_when_its_work_fails(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.0)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ZeroDivisionError), ledger.locked(0, 4):
        raise ZeroDivisionError
    with ledger.locked(0, 4):
        pass
    assert os.listdir("/proc/self/fd") == before


def test_only_one_of_many_gets_what_all_want(ledger: Ledger) -> None:
    code = """
import sys
from builder.base.errors import LockedError
from builder.store import ledger as module
module._PATIENCE = 0.0
try:
    with module.Ledger(sys.argv[1]).locked(0, 4):
        print("got", flush=True)
        sys.stdin.read()
except LockedError:
    print("refused", flush=True)
"""
    command = [sys.executable, "-c", code, ledger.out]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(4)
    ]
    try:
        answers = [process.stdout.readline().strip() for process in processes if process.stdout]
        assert sorted(answers) == ["got", "refused", "refused", "refused"]
    finally:
        for process in processes:
            process.communicate("")


def test_an_out_that_cannot_be_written_is_a_write_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError), Ledger(str(tmp_path / "file")).locked(0, 1):
        pass
    with pytest.raises(WriteError):
        Ledger(str(tmp_path / "file")).create("x")
