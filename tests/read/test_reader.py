from __future__ import annotations

import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import xxhash

from builder.base.errors import IndexMismatchError, SourceError
from builder.base.options import ConvertOptions, SamplePolicy
from builder.conversion.convert import convert
from builder.conversion.index import index
from builder.read.opening import open_dataset
from builder.read.reader import Reader
from builder.read.view import COLUMNS, View
from tests.outputs import environment, make_large_source, output_bytes, run_python
from tests.sources import LAYOUTS, Source, faults_of, make_source

# From 3.12 on, forking a process that has other threads warns: which is what some of these tests do on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


KINDS = ("parquet", "arrow", "index")


def make(source: Source, kind: str, out: Path) -> Reader:
    if kind == "index":
        index(str(source.path), str(out), ConvertOptions(recaptions=source.recaptions), num_proc=1, quiet=True)
    else:
        options = ConvertOptions(format=kind, recaptions=source.recaptions)
        convert(str(source.path), str(out), options, num_proc=1, quiet=True)
    return open_dataset(out)


@pytest.fixture(scope="module", params=KINDS)
def shelf(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Reader]:
    """A card source and a reader of it, of each kind."""
    folder = tmp_path_factory.mktemp("shelf")
    source = make_source(folder / "src", per_shard=10, faults=["bom", "surrogate", "stem_twin", "too_wide"])
    return source, make(source, request.param, folder / "out")


def small(tmp_path: Path, kind: str = "parquet") -> tuple[Source, Path]:
    source = make_source(tmp_path / "src")
    make(source, kind, tmp_path / "out")
    return source, tmp_path / "out"


# Every row, every way


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_row_is_what_the_source_holds(layout: str, kind: str, tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", layout, shards=4, per_shard=10, faults=faults_of(layout))
    reader = make(source, kind, tmp_path / "out")
    keys = list(source.rows)
    assert len(reader) == len(keys)
    ways: list[Iterator[object]] = [
        iter(reader),
        (reader[number] for number in range(len(reader))),
        iter(reader[list(range(len(reader)))]),
        iter(reader[:]),
    ]
    for way in ways:
        for number, (key, sample) in enumerate(zip(keys, way, strict=True)):
            expected = source.rows[key]
            document = expected.document.encode("utf-8", "backslashreplace").decode()
            assert (sample.key, sample.path, sample.row) == (key, source.paths[key], number)  # type: ignore[attr-defined]
            assert sample.image == expected.image  # type: ignore[attr-defined]
            assert (sample.caption, sample.annotation) == (expected.caption, document)  # type: ignore[attr-defined]


def test_a_row_says_what_is_known_of_it(shelf: tuple[Source, Reader]) -> None:
    source, reader = shelf
    from PIL import Image

    for sample in reader:
        import io

        with Image.open(io.BytesIO(sample.image)) as image:
            assert image.size == (sample.width, sample.height)
        assert sample.size == len(sample.image)
        assert sample.annotation_path.endswith(".json")
        assert sample.digest in (None, xxhash.xxh3_128_digest(sample.image))
        assert f"key={sample.key!r}" in repr(sample)
    assert f"{len(source.rows)} rows in" in repr(reader)


@pytest.mark.parametrize("number", [0, 1, -1, -2, np.int64(3), np.int32(-1), np.array(2)])
def test_a_number_is_a_row_negative_ones_from_the_end(number: int, shelf: tuple[Source, Reader]) -> None:
    source, reader = shelf
    assert reader[number].key == list(source.rows)[number]
    assert reader[number].row == range(len(reader))[number]


@pytest.mark.parametrize("number", [10**6, -(10**6), 2**63, -(2**63) - 1])
def test_no_row_has_a_number_out_of_range(number: int, shelf: tuple[Source, Reader]) -> None:
    reader = shelf[1]
    for wrong in (number, [0, number]):
        with pytest.raises(IndexError, match=str(number)):
            reader[wrong]
    for edge in (len(reader), -len(reader) - 1):
        for rows in (reader, reader[:]):
            for wrong in (edge, [0, edge]):
                with pytest.raises(IndexError, match=f"no row {edge}, only {len(reader)} rows"):
                    rows[wrong]


@pytest.mark.parametrize(
    "cut",
    [
        slice(None),
        slice(3, 7),
        slice(-3, None),
        slice(None, None, -1),
        slice(20, 2, -5),
        slice(5, 5),
        slice(0, 10**9),
        slice(-(10**9), 4),
    ],
)
def test_a_slice_is_a_view(cut: slice, shelf: tuple[Source, Reader]) -> None:
    source, reader = shelf
    keys = list(source.rows)[cut]
    view = reader[cut]
    assert len(view) == len(keys)
    assert [sample.key for sample in view] == keys
    assert [view[number].key for number in range(len(view))] == keys
    assert [sample.key for sample in view[::-2]] == keys[::-2]
    assert [sample.image for sample in view[1:]] == [source.rows[key].image for key in keys[1:]]
    if keys:
        assert view[-1].key == keys[-1]
        assert [sample.key for sample in reversed(view)] == keys[::-1]


@pytest.mark.parametrize(
    "numbers",
    [
        [],
        [3],
        [3, 9, 9],
        [9, 3, 0, -1],
        (1, 2),
        range(5, 1, -1),
        [np.int64(2), np.int32(4)],
        list(range(29, -1, -1)),  # so many that threads share them
        [7, 21, 7, 28, 0, 21] * 9,
    ],
)
def test_a_list_of_numbers_gives_samples_in_its_order(numbers: list[int], shelf: tuple[Source, Reader]) -> None:
    source, reader = shelf
    keys = list(source.rows)
    samples = reader[numbers]
    assert isinstance(samples, list)
    assert [sample.key for sample in samples] == [keys[number] for number in numbers]
    assert [sample.image for sample in samples] == [source.rows[keys[number]].image for number in numbers]


def test_arrays_of_numbers_are_lists_of_numbers(shelf: tuple[Source, Reader]) -> None:
    torch = pytest.importorskip("torch")
    source, reader = shelf
    keys = list(source.rows)
    for numbers in (np.array([4, 2, 2]), np.array([7]), np.array([], dtype=np.int64), torch.tensor([4, 2])):
        assert [sample.key for sample in reader[numbers]] == [keys[number] for number in numbers.tolist()]


def test_sequences_of_other_libraries_are_lists_of_numbers(shelf: tuple[Source, Reader]) -> None:
    pandas = pytest.importorskip("pandas")
    source, reader = shelf
    keys = list(source.rows)
    widths = reader.columns("width").column(0)
    wide = pc.indices_nonzero(pc.greater(widths, 100))
    for numbers in (wide, pa.chunked_array([wide, wide[:1]]), pandas.Series([3, 1]), array("q", [5, -1])):
        assert [sample.key for sample in reader[numbers]] == [keys[number] for number in np.asarray(numbers)]


def test_a_view_takes_what_a_reader_takes(shelf: tuple[Source, Reader]) -> None:
    source, reader = shelf
    for cut in (slice(5, 15), slice(20, 2, -3)):
        view, keys = reader[cut], list(source.rows)[cut]
        for number in (0, -1, np.int64(2), np.int32(-2), np.array(1)):
            assert view[number].key == keys[int(number)]
        for numbers in ([], [3, 0, 0, -1], (1, 2), range(3), np.array([4, -4]), [np.int64(2)], pa.array([1, 5])):
            samples = view[numbers]
            wanted = [keys[int(number)] for number in np.asarray(numbers, np.int64)]
            assert isinstance(samples, list)
            assert [sample.key for sample in samples] == wanted
            assert [sample.image for sample in samples] == [source.rows[key].image for key in wanted]
        assert [sample.key for sample in view[1:][[0, -1]]] == [keys[1], keys[-1]]
        with pytest.raises(IndexError, match=f"no row {len(keys)}, only {len(keys)} rows"):
            view[[len(keys)]]


def test_rows_of_a_view_are_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = open_dataset(small(tmp_path)[1])[4:]
    reads: list[tuple[int, int]] = []
    monkeypatch.setattr(
        view._reader._files, "read", lambda file, offset, size: reads.append((file, offset)) or bytes(size)
    )
    view[[5, 2, 5, 7, 0, 2]]
    assert len(reads) == 4
    assert reads == sorted(reads)


def test_a_view_has_the_keys_of_its_rows(shelf: tuple[Source, Reader]) -> None:
    source, reader = shelf
    keys = list(source.rows)
    view = reader[3:9:2]
    assert [key for key in keys if key in view] == keys[3:9:2]
    assert "00000" not in view
    assert 3 not in view


def test_a_view_has_everything_that_a_reader_has(shelf: tuple[Source, Reader]) -> None:
    reader = shelf[1]
    assert {name for name in dir(Reader) if not name.startswith("_")} <= set(dir(View))
    for rows in (range(20, 2, -3), [5, 1, 1, 9], []):
        view = View(reader, rows)
        for name in COLUMNS:
            values = reader.columns(name).column(0).to_pylist()
            assert view.columns(name).column(0).to_pylist() == [values[row] for row in rows]
        assert view.widths().tolist() == [reader[row].width for row in rows]
        assert view.heights().tolist() == [reader[row].height for row in rows]
        assert view.shards == reader.shards
        for sample in view:
            assert view.find(sample.key).row == sample.row
        outside = set(range(len(reader))) - set(rows)
        for row in outside:
            assert reader[row].key not in view
            with pytest.raises(KeyError):
                view.find(reader[row].key)
        assert pickle.loads(pickle.dumps(view)).identity == view.identity
    assert len({each.identity for each in (reader, reader[1:], reader[::-1], View(reader, [1]))}) == 4


@pytest.mark.parametrize(
    "wrong", [1.5, None, "00012", "a", b"ab", [1.5], ["1"], {"a": 1}, {1, 2}, np.array([1.0, 2.0])]
)
def test_what_is_no_number_is_a_type_error(wrong: object, shelf: tuple[Source, Reader]) -> None:
    for rows in (shelf[1], shelf[1][:5]):
        with pytest.raises(TypeError):
            rows[wrong]  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "mask",
    [
        True,
        False,
        np.True_,
        np.array(True),
        [True, False],
        [0, True],
        [np.True_],
        np.array([True, False]),
        "arrow",
        "torch",
    ],
)
def test_a_mask_is_not_taken_for_rows_0_and_1(mask: Any, shelf: tuple[Source, Reader]) -> None:
    reader = shelf[1]
    if isinstance(mask, str):
        mask = pa.array([True]) if mask == "arrow" else pytest.importorskip("torch").tensor([True])
    for rows in (reader, reader[:5]):
        with pytest.raises(TypeError, match=r"ds\[np.flatnonzero\(mask\)\]"):
            rows[mask]
    chosen = reader.widths() > 100
    assert len(reader[np.flatnonzero(chosen)]) == chosen.sum()


def test_samples_of_a_batch_stay_as_they_are_while_others_are_read(shelf: tuple[Source, Reader]) -> None:
    source, reader = shelf
    keys = list(source.rows)
    batches = [reader[list(range(first, first + 8))] for first in range(0, 24, 4)]
    for first, batch in zip(range(0, 24, 4), batches, strict=True):
        assert [sample.image for sample in batch] == [source.rows[key].image for key in keys[first : first + 8]]


def test_every_key_is_found_and_no_other(shelf: tuple[Source, Reader]) -> None:
    source, reader = shelf
    for key, row in source.rows.items():
        assert reader.find(key).key == key
        assert reader.find(key).image == row.image
        assert key in reader
    for key in ("", "00000", "00000/000000001.jpg", "\ud800", "x" * 10**5):
        assert key not in reader
        with pytest.raises(KeyError):
            reader.find(key)
    assert 12 not in reader


def test_columns_are_arrow_without_images(shelf: tuple[Source, Reader]) -> None:
    source, reader = shelf
    table = reader.columns()
    assert table.schema.names == list(COLUMNS)
    assert table.column("key").to_pylist() == list(source.rows)
    assert table.column("caption").to_pylist() == [row.caption for row in source.rows.values()]
    assert table.column("size").to_pylist() == [len(row.image) for row in source.rows.values()]
    assert reader.columns("width", "key").schema.names == ["width", "key"]
    assert reader.widths().tolist() == table.column("width").to_pylist()
    assert reader.heights().tolist() == table.column("height").to_pylist()
    with pytest.raises(KeyError, match="no column image, but key, path"):
        reader.columns("image")


# Processes and threads


def read_all(reader: Reader, expected: dict[str, bytes], seed: int = 0) -> None:
    rows = list(range(len(reader)))
    random.Random(seed).shuffle(rows)
    for row in rows:
        sample = reader[row]
        assert sample.image == expected[sample.key]
        assert sample.annotation
    for sample in reader[rows]:
        assert sample.image == expected[sample.key]


def images_of(source: Source) -> dict[str, bytes]:
    return {key: row.image for key, row in source.rows.items()}


def test_a_reader_travels_by_pickle(shelf: tuple[Source, Reader]) -> None:
    source, reader = shelf
    reader[0]  # something is open
    data = pickle.dumps(reader)
    assert len(data) < 2000
    read_all(pickle.loads(data), images_of(source))
    view = pickle.loads(pickle.dumps(reader[3:5]))
    assert [sample.key for sample in view] == list(source.rows)[3:5]


def test_samples_travel_by_pickle(shelf: tuple[Source, Reader]) -> None:
    reader = shelf[1]
    for sample in (reader[4], reader[[4]][0]):
        back = pickle.loads(pickle.dumps(sample))
        assert (back.key, back.image, back.caption, back.annotation, back.row) == (
            sample.key,
            sample.image,
            sample.caption,
            sample.annotation,
            4,
        )


def in_fork(work: Callable[[], None]) -> int:
    """Exit code of a child that does ``work``; one that hangs is ended by an alarm."""
    child = os.fork()
    if not child:
        signal.alarm(2)
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_reader_survives_fork_and_both_sides_read_on(shelf: tuple[Source, Reader]) -> None:
    source, reader = shelf
    read_all(reader, images_of(source))
    children = []
    for seed in range(3):
        child = os.fork()
        if not child:
            code = 1
            try:
                signal.alarm(10)
                read_all(reader, images_of(source), seed)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    read_all(reader, images_of(source))
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]


@pytest.mark.slow
def test_a_fork_while_threads_read_leaves_no_lock_behind(shelf: tuple[Source, Reader]) -> None:
    source, reader = shelf
    stop = threading.Event()

    def read_on() -> None:
        while not stop.is_set():
            reader._groups._kept.clear()  # so that something is decoded, under whatever lock there is
            for row in range(5):
                reader[row].annotation  # noqa: B018

    thread = threading.Thread(target=read_on)
    thread.start()
    try:
        for _ in range(12):
            assert in_fork(lambda: read_all(reader, images_of(source))) == 0
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize(
    "lock",
    [
        lambda reader: reader._groups._lock,
        lambda reader: reader._files._lock,
    ],
)
def test_a_lock_that_was_held_at_a_fork_does_not_stop_the_child(lock: Callable[[Reader], Any], tmp_path: Path) -> None:
    source, out = small(tmp_path)
    reader = open_dataset(out)
    with lock(reader):  # as a thread would that does not come along
        assert in_fork(lambda: read_all(reader, images_of(source))) == 0


SPAWNING = """
import multiprocessing, sys
from builder.read.opening import open_dataset

def work(reader):
    return [(sample.key, len(sample.image)) for sample in reader]

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        reader = open_dataset(sys.argv[1])
        print(pool.map(work, [reader])[0] == work(reader))
"""


@pytest.mark.slow
def test_a_reader_serves_a_spawned_process(tmp_path: Path) -> None:
    _, out = small(tmp_path)
    (tmp_path / "main.py").write_text(SPAWNING)
    command = [sys.executable, tmp_path / "main.py", out]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_eight_threads_read_at_once(shelf: tuple[Source, Reader]) -> None:
    source, reader = shelf
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(read_all, reader, images_of(source), seed) for seed in range(16)]:
            done.result()


def test_a_data_loader_takes_a_reader_as_it_is(shelf: tuple[Source, Reader]) -> None:
    data = pytest.importorskip("torch.utils.data")
    source, reader = shelf
    loader = data.DataLoader(
        reader, batch_size=4, shuffle=True, num_workers=2, collate_fn=lambda batch: [(s.key, s.image) for s in batch]
    )
    found = [pair for batch in loader for pair in batch]
    assert dict(found) == images_of(source)
    assert len(found) == len(source.rows)


def test_a_data_loader_reads_a_batch_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pytest.importorskip("torch.utils.data")
    reader = open_dataset(small(tmp_path)[1])
    fetched: list[list[int]] = []
    fetch = reader._fetch
    monkeypatch.setattr(reader, "_fetch", lambda rows: fetched.append(list(rows)) or fetch(rows))
    for rows in (reader, reader[5:], data.Subset(reader, range(5, len(reader)))):
        first = rows[0].row
        list(data.DataLoader(rows, batch_size=8, collate_fn=list))
        assert [row for batch in fetched for row in batch] == list(range(first, len(reader)))
        assert len(fetched[0]) == 8
        fetched.clear()


MANY = """
import resource, sys, threading
resource.setrlimit(resource.RLIMIT_NOFILE, (170, 170))
from builder.read.opening import open_dataset
reader = open_dataset(sys.argv[1])
assert len(reader.shards) == 400, len(reader.shards)
for _ in range(2):
    for row in range(len(reader)):
        assert len(reader[row].image) == reader[row].size
        assert reader[row].annotation
assert len(reader[list(range(len(reader)))]) == 200
def read(step):
    for row in range(0, len(reader) * step, step):
        assert reader[row % len(reader)].image
threads = [threading.Thread(target=read, args=(step,)) for step in (1, 3, 7, 11, 13, 17)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print("read")
"""


@pytest.mark.slow
def test_hundreds_of_files_need_few_handles(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", shards=200, per_shard=1)
    make(source, "index", tmp_path / "out")
    ran = run_python(MANY, tmp_path / "out")
    assert ran.stdout == "read\n", ran.stderr
    assert ran.stderr == ""


# Files that are not what they were


@pytest.mark.parametrize("kind", KINDS)
def test_a_renamed_source_is_a_clear_error_unless_all_of_it_is_in_out(kind: str, tmp_path: Path) -> None:
    source, out = small(tmp_path, kind)
    source.path.rename(tmp_path / "renamed")
    if kind == "index":
        with pytest.warns(UserWarning, match="lacks 6 of its 6 files"):
            reader = open_dataset(out)
    else:
        reader = open_dataset(out)
        read_all(reader, images_of(source))
        return
    for touch in (lambda: reader[0].image, lambda: reader[[0]], lambda: reader[0].annotation, lambda: list(reader)):
        with pytest.raises(IndexMismatchError) as caught:
            touch()
        assert f"{source.path}/" in str(caught.value)
        assert "No such file" in str(caught.value)
        assert "open_dataset(PATH, source=FOLDER)" in str(caught.value)
    assert reader[0].caption  # what the index itself holds
    found = open_dataset(out, source=str(tmp_path / "renamed"))
    read_all(found, images_of(source))
    read_all(pickle.loads(pickle.dumps(found)), images_of(source))


@pytest.mark.parametrize("kind", KINDS)
def test_a_moved_out_reads_on(kind: str, tmp_path: Path) -> None:
    source, out = small(tmp_path, kind)
    out.rename(tmp_path / "moved")
    read_all(open_dataset(tmp_path / "moved"), images_of(source))


@pytest.mark.parametrize("kind", KINDS)
def test_a_relative_path_holds_when_the_working_directory_changes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = small(tmp_path, kind)
    monkeypatch.chdir(tmp_path)
    reader = open_dataset("out")
    monkeypatch.chdir("/")
    read_all(reader, images_of(source))
    read_all(pickle.loads(pickle.dumps(reader)), images_of(source))


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = small(tmp_path, "index")
    monkeypatch.setenv("HOME", str(tmp_path))
    read_all(open_dataset("~/out", source="~/src"), images_of(source))


def flip_end(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(bytes(data))


CHANGES: dict[str, Callable[[Path], object]] = {
    "shorter": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "gone": Path.unlink,
    "another": flip_end,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("keep_time", [True, False])
def test_an_arrow_shard_that_is_replaced_before_its_first_read_gives_no_other_bytes(
    keep_time: bool, tmp_path: Path
) -> None:
    """Its index knows its size alone: a file of the same size must not pass for it."""
    _, out = small(tmp_path, "arrow")
    dataset = open_dataset(out)
    shard = next((out / "data").glob("*.arrow"))
    status, data = shard.stat(), bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0xFF
    shard.write_bytes(data)
    if keep_time:
        os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(IndexMismatchError, match="other bytes were written to it"):
        dataset[0].image  # noqa: B018


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_shard_is_a_clear_error(kind: str, change: str, tmp_path: Path) -> None:
    source, out = small(tmp_path, kind)
    shard = source.path / "raw" / "00000.tar" if kind == "index" else next((out / "data").iterdir())
    reader = open_dataset(out)
    CHANGES[change](shard)
    for touch in (lambda: reader[0].image, lambda: reader[[0, 1]], lambda: next(iter(reader))):
        with pytest.raises(IndexMismatchError, match=str(shard)):
            touch()
    if kind != "index":
        with pytest.raises(IndexMismatchError, match=str(shard)):
            reader[0].annotation  # noqa: B018


def flip(path: Path) -> None:
    """Other bytes of the same number, a Parquet footer left as it is."""
    data = path.read_bytes()
    path.write_bytes(bytes(255 - byte for byte in data[:-4000]) + data[-4000:])


@pytest.mark.parametrize("change", [flip, lambda path: os.truncate(path, 2000), lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("kind", KINDS)
def test_shards_that_change_under_an_open_reader_never_give_other_bytes(
    kind: str, change: Callable[[Path], object], tmp_path: Path
) -> None:
    source, out = small(tmp_path, kind)
    shard = source.path / "raw" / "00002.tar" if kind == "index" else next((out / "data").iterdir())
    reader = open_dataset(out)
    held = reader[-1]
    assert held.image
    change(shard)
    touches: list[Callable[[], object]] = [
        lambda: held.image,
        lambda: reader[-1].image,
        lambda: reader[[-1, -2]],
        lambda: list(reader[-3:]),
        lambda: reader[-1:][0].image,
        lambda: pickle.loads(pickle.dumps(held)).image,
    ]
    for touch in touches if kind == "index" or change is not flip else touches[:-1]:
        with pytest.raises(IndexMismatchError, match=f"{shard}.*(when it was|written to it|it was modified)"):
            touch()


def test_another_conversion_copied_over_shards_never_gives_its_images(tmp_path: Path) -> None:
    source, out = small(tmp_path)
    options = ConvertOptions(policy=SamplePolicy(max_aspect_ratio=1.2))
    convert(str(source.path), str(tmp_path / "other"), options, num_proc=1, quiet=True)
    reader = open_dataset(out)
    assert reader[0].image
    for name in ("data", "meta"):
        for path in (tmp_path / "other" / name).iterdir():
            shutil.copyfile(path, out / name / path.name)
    for row in range(len(reader)):
        with pytest.raises(IndexMismatchError):
            reader[row].image  # noqa: B018
    with pytest.raises(IndexMismatchError):
        reader[list(range(len(reader)))]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_shards_that_were_touched_are_read_on_where_the_manifest_proves_them(kind: str, tmp_path: Path) -> None:
    source, out = small(tmp_path, kind)
    reader = open_dataset(out)
    read_all(reader, images_of(source))
    shard = next((out / "data").iterdir())
    os.utime(shard)
    read_all(reader, images_of(source))
    shard.write_bytes(shard.read_bytes())  # restored from a copy
    read_all(reader, images_of(source))
    shard.chmod(0o400)  # its inode alone was touched
    read_all(reader, images_of(source))
    shard.chmod(0o600)
    time = shard.stat().st_mtime_ns
    flip(shard)
    os.utime(shard, ns=(time, time))  # as if nothing had been written
    with pytest.raises(IndexMismatchError):
        reader[0].image  # noqa: B018
    os.utime(shard)
    (out / "meta" / "manifest.json").unlink()  # nothing proves anything
    with pytest.raises(IndexMismatchError):
        reader[0].image  # noqa: B018


@pytest.mark.parametrize("size", [0, 5000])
def test_an_index_that_is_cut_short_under_an_open_reader_is_an_error_and_no_crash(size: int, tmp_path: Path) -> None:
    reader = open_dataset(small(tmp_path)[1])
    assert reader[0].caption
    os.truncate(tmp_path / "out" / "meta" / "index.arrow", size)
    key = "00000/000000000"
    for touch in (lambda: reader[0], lambda: reader[[1, 2]], lambda: reader.find(key), reader.columns, reader.widths):
        with pytest.raises(IndexMismatchError, match=r"index\.arrow was changed while the dataset was open"):
            touch()


@pytest.mark.parametrize("side", ["raw", "captions"])
def test_a_changed_extracted_file_is_a_clear_error(side: str, tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", "extracted")
    reader = make(source, "index", tmp_path / "out")
    path = source.path / side / (reader[0].path if side == "raw" else reader[0].annotation_path)
    path.write_bytes(b"another")
    with pytest.raises(IndexMismatchError, match=str(path)):
        reader[0].image if side == "raw" else reader[0].annotation
    assert reader[1].image == source.rows[reader[1].key].image


# What is no dataset


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda path: None, "is not there"),
        (lambda path: path.mkdir(), "has no meta/index.arrow"),
        pytest.param(lambda path: path.write_text("x"), "is neither a folder nor a"),
        (lambda path: (path / "data").mkdir(parents=True), "has no meta/index.arrow"),
    ],
)
def test_what_is_no_dataset_is_said_to_be_none(prepare: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    prepare(tmp_path / "x")
    with pytest.raises(SourceError, match=words):
        open_dataset(tmp_path / "x")


def test_a_source_without_an_index_is_told_how_to_get_one(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    with pytest.raises(SourceError, match=f"laion6m index {source.path}"):
        open_dataset(source.path)


def test_an_empty_dataset_reads_as_one(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    for kind in KINDS:
        reader = make(source, kind, tmp_path / kind)[:0]
        assert (len(reader), list(reader), reader[[]], len(reader[:])) == (0, [], [], 0)
        assert reader.columns().num_rows == 0
        assert reader.widths().tolist() == []
        assert "a" not in reader
        with pytest.raises(IndexError):
            reader[0]


def test_reading_writes_nothing(tmp_path: Path) -> None:
    source, out = small(tmp_path)
    before = output_bytes(out)
    read_all(open_dataset(out), images_of(source))
    assert output_bytes(out) == before


def test_several_shards_and_row_groups_read_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from builder.store import arrow, parquet

    monkeypatch.setattr(parquet, "GROUP_BYTES", 300_000)
    monkeypatch.setattr(arrow, "GROUP_BYTES", 300_000)
    keys = make_large_source(tmp_path / "src", tars=2)
    index(str(tmp_path / "src"), str(tmp_path / "index"), num_proc=1, quiet=True)
    tars = open_dataset(tmp_path / "index")
    for form in ("parquet", "arrow"):
        options = ConvertOptions(format=form, max_shard_size=1_000_000)
        convert(str(tmp_path / "src"), str(tmp_path / form), options, num_proc=1, quiet=True)
        reader = open_dataset(tmp_path / form)
        assert len(reader.shards) == 4
        assert [sample.key for sample in reader] == keys
        rows = random.Random(1).sample(range(len(reader)), 30)
        for ours, theirs in zip(reader[rows], tars[rows], strict=True):
            assert (ours.key, ours.image, ours.annotation) == (theirs.key, theirs.image, theirs.annotation)
            assert ours.annotation == f'{{"caption": "a caption of {ours.key}"}}'


def test_an_index_without_its_files_still_has_its_captions(tmp_path: Path) -> None:
    source, out = small(tmp_path)
    shutil.rmtree(out / "data")
    with pytest.warns(UserWarning, match="lacks 1 of its 1 file"):
        reader = open_dataset(out)
    assert reader.columns("caption").column(0).to_pylist() == [row.caption for row in source.rows.values()]
    with pytest.raises(IndexMismatchError):
        reader[0].image  # noqa: B018


# Batches


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_is_what_single_reads_are(layout: str, kind: str, tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", layout, shards=4, per_shard=10, faults=faults_of(layout))
    reader = make(source, kind, tmp_path / "out")
    chosen = random.Random(3).choices(range(-len(reader), len(reader)), k=3 * len(reader))
    for wanted, sample in zip(chosen, reader[chosen], strict=True):
        single = reader[wanted]
        assert type(sample.image) is bytes
        assert (sample.row, sample.image, sample.caption) == (single.row, single.image, single.caption)


def test_a_batch_has_been_read_twins_once_and_in_file_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, out = small(tmp_path)
    reader = open_dataset(out)
    single = [reader[row].image for row in range(8)]
    reads: list[tuple[int, int]] = []
    monkeypatch.setattr(reader._files, "read", lambda file, offset, size: reads.append((file, offset)) or bytes(size))
    reader[[5, 2, 5, 7, 0, 2]]
    assert len(reads) == 4
    assert reads == sorted(reads)
    monkeypatch.undo()
    batch = reader[[5, 2, 5, 7]]
    shutil.rmtree(out / "data")
    assert [sample.image for sample in batch] == [single[row] for row in (5, 2, 5, 7)]


def test_samples_that_travelled_share_a_reader_and_its_files(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    convert(str(source.path), str(tmp_path / "out"), num_proc=1, quiet=True)
    reader = open_dataset(tmp_path / "out")
    came = [pickle.loads(pickle.dumps(reader[row])) for row in range(8)]
    assert len({id(sample._reader) for sample in came}) == 1
    assert [sample.image for sample in came] == [reader[row].image for row in range(8)]
    shutil.rmtree(tmp_path / "out")
    convert(
        str(source.path), str(tmp_path / "out"), ConvertOptions(policy=SamplePolicy(min_side=1)), num_proc=1, quiet=True
    )
    later = pickle.loads(pickle.dumps(reader[0]))
    assert later._reader is not came[0]._reader  # of another index


def test_too_many_open_files_are_not_taken_for_another_file(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    convert(str(source.path), str(tmp_path / "out"), num_proc=1, quiet=True)
    code = f"""
import os, resource
from builder.base.errors import SourceError, IndexMismatchError
from builder.read.opening import open_dataset
reader = open_dataset({str(tmp_path / "out")!r})
reader[0].caption
resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30))
held = []
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
for touch in (lambda: reader[0].image, lambda: open_dataset({str(tmp_path / "out")!r})):
    try:
        touch()
    except SourceError as error:
        print("too many" in str(error).lower())
"""
    assert run_python(code).stdout == "True\nTrue\n"
