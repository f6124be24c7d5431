"""add-column and the columns it makes."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from builder.base.errors import (
    DamagedFileError,
    IndexMismatchError,
    InterruptedRunError,
    JobMismatchError,
    LockedError,
    MissingExtraError,
    OptionError,
    OutputError,
    SourceError,
)
from builder.base.options import ConvertOptions
from builder.conversion.convert import convert
from builder.conversion.index import index
from builder.curate import arrays as job
from builder.curate import columns as curate_columns
from builder.curate.add_column import add_column
from builder.read import columns
from builder.read.columns import Array, columns_of
from builder.read.columns import open_any as open_column
from builder.read.opening import open_dataset
from builder.store.ledger import Ledger

ROWS, SHARDS = 30, 3


def npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    """A .npy file by hand."""
    text = header.encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + data


def npy_of(dtype: str, shape: str, data: bytes = b"") -> bytes:
    return npy(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}\n", data)


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


def tensor(shape: str, offsets: str = "[0, 4]", dtype: str = '"F32"') -> bytes:
    """A .safetensors file of one tensor by hand."""
    header = f'{{"a": {{"dtype": {dtype}, "shape": {shape}, "data_offsets": {offsets}}}}}'.encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


def noise(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (200, 260, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def column_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    entries = []
    for folder in ("raw", "captions"):
        (root / folder).mkdir()
        for shard in range(SHARDS):
            with tarfile.open(root / folder / f"{shard:05d}.tar", "w") as tar:
                for number in range(shard, ROWS, SHARDS):
                    name = f"{shard:05d}/{number:06d}"
                    data = noise(number) if folder == "raw" else b'{"re_caption": "noise"}'
                    info = tarfile.TarInfo(name + (".jpg" if folder == "raw" else ".json"))
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                    if folder == "raw":
                        entries.append({"image": f"{name}.jpg", "annotation": f"{name}.json"})
    (root / "data.json").write_text(json.dumps(entries))
    return root


@pytest.fixture(params=["converted", "indexed"])
def dataset(request: pytest.FixtureRequest, column_source: Path, tmp_path: Path) -> str:
    out = str(tmp_path / "out")
    if request.param == "converted":
        convert(str(column_source), out, ConvertOptions(max_shard_size=1_000_000), num_proc=1, quiet=True)
    else:
        index(str(column_source), out, num_proc=1, quiet=True)
    assert len(open_dataset(out)) == ROWS
    return out


def array_of(path: str) -> np.ndarray:
    """Something different for every image, of two shapes."""
    number = int(path[6:12])
    return (np.arange(12, dtype=np.float32) + number).reshape((3, 4) if number % 2 else (2, 6))


def safetensors(array: np.ndarray, dtype: str = "F32") -> bytes:
    entry = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [0, array.nbytes]}
    header = json.dumps({"__metadata__": {"made": "by hand"}, "latents": entry}).encode()
    return struct.pack("<Q", len(header)) + header + array.tobytes()


def write_arrays(folder: Path, dataset: str, kinds: tuple[str, ...]) -> str:
    for row, sample in enumerate(open_dataset(dataset)):
        kind = kinds[row % len(kinds)]
        path = folder / f"{sample.path}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        array = array_of(sample.path)
        if kind == "npy":
            np.save(path, array)
        elif kind == "safetensors":
            path.write_bytes(safetensors(array))
        else:
            torch = pytest.importorskip("torch", reason="the training side needs torch")
            torch.save(torch.from_numpy(array), path)
    return str(folder)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # mmengine's, which a .pt file brings along where it is there
@pytest.mark.parametrize("kinds", [("npy",), ("safetensors",), ("pt",), ("npy", "safetensors")])
def test_a_column_gives_back_every_array_in_the_rows_of_the_images(
    kinds: tuple[str, ...], dataset: str, tmp_path: Path
) -> None:
    summary = add_column(dataset, "latents", write_arrays(tmp_path / "arrays", dataset, kinds), num_proc=1, quiet=True)
    assert (summary.rows, summary.shards, summary.bytes) == (ROWS, len({*shards_of(dataset)}), ROWS * 48)
    assert json.dumps(summary.to_json())
    column = pickle.loads(pickle.dumps(open_column(dataset, "latents")))
    assert len(column) == ROWS
    assert columns_of(dataset) == ["latents"]
    for row, sample in enumerate(open_dataset(dataset)):
        array = column[row]
        expected = array_of(sample.path)
        assert (array.dtype, array.shape, array.data) == ("float32", expected.shape, expected.tobytes())


def shards_of(dataset: str) -> list[int]:
    """Which file each row's image lies in."""
    numbers: list[int] = open_dataset(dataset)._index.column("file").tolist()
    return numbers


def test_the_files_are_parquet_with_the_keys_and_shards_of_the_images(dataset: str, tmp_path: Path) -> None:
    add_column(dataset, "latents", write_arrays(tmp_path / "arrays", dataset, ("npy",)), num_proc=1, quiet=True)
    files = sorted((Path(dataset) / "columns" / "latents").iterdir())
    by_file = [pq.read_table(file) for file in files]
    owners = shards_of(dataset)
    assert [table.num_rows for table in by_file] == [owners.count(owner) for owner in sorted(set(owners))]
    assert len(files) > 1
    keys = [key for table in by_file for key in table["key"].to_pylist()]
    assert keys == [sample.key for sample in open_dataset(dataset)]
    assert by_file[0].schema.names == ["key", "latents"]
    assert by_file[0]["latents"][0].as_py()["data"] == array_of(keys[0]).tobytes()
    assert not (Path(dataset) / ".laion6m" / "columns" / "latents").exists()


def test_several_processes_write_the_same_bytes(dataset: str, tmp_path: Path) -> None:
    folder = write_arrays(tmp_path / "arrays", dataset, ("npy",))
    add_column(dataset, "one", folder, num_proc=1, quiet=True)
    add_column(dataset, "two", folder, num_proc=2, quiet=True)
    one, two = open_column(dataset, "one"), open_column(dataset, "two")
    assert [one[row] for row in range(ROWS)] == [two[row] for row in range(ROWS)]


def test_a_column_takes_up_work_where_it_stopped(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(write_arrays(tmp_path / "arrays", dataset, ("npy",)))
    last = open_dataset(dataset)[-1].path
    hidden = folder / f"{last}.npy"
    content = hidden.read_bytes()
    hidden.unlink()
    with pytest.raises(SourceError, match=last):
        add_column(dataset, "latents", str(folder), num_proc=1, quiet=True)
    with pytest.raises(SourceError, match="no column latents"):
        open_column(dataset, "latents")
    with pytest.raises(JobMismatchError, match="folder was"):
        add_column(dataset, "latents", str(tmp_path), num_proc=1, quiet=True)
    hidden.write_bytes(content)
    done: list[int] = []
    write = job._write_shard
    monkeypatch.setattr(
        job, "_write_shard", lambda unit, report: done.append(unit.shard.shard.number) or write(unit, report)
    )
    add_column(dataset, "latents", str(folder), num_proc=1, quiet=True)
    assert done == [len(set(shards_of(dataset))) - 1]
    assert open_column(dataset, "latents")[ROWS - 1].data == array_of(last).tobytes()
    with pytest.raises(OutputError, match="already"):
        add_column(dataset, "latents", str(folder), num_proc=1, quiet=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("npy", b""),
        ("npy", b"\x93NUMPY\x01\x00garbage"),
        ("npy", pickle.dumps([1])),  # numpy would unpickle it if it were let
        ("safetensors", b"\x01"),
        ("safetensors", struct.pack("<Q", 10**9) + b"{}"),
        ("safetensors", struct.pack("<Q", 2) + b"{}"),
        ("safetensors", safetensors(np.zeros(3, np.float32), "F64")),
        ("safetensors", safetensors(np.zeros(3, np.float32), "X9")),
        ("npy", npz()),
        ("npy", b"PK\x03\x04 and no more"),
        ("npy", npy("{'descr': (((")),
        ("npy", npy("[" * 9000)),
        ("npy", npy("{}", version=3)),
        ("npy", npy_of("<f4", f"({10**22},)")),
        ("npy", npy_of("<f4", f"({10**15},)", bytes(100))),
        ("npy", npy_of("<f4", f"(0, {2**33})")),
        ("npy", npy_of("<f4", f"(0, {10**22})")),
        ("npy", npy_of("<f4", "(-1,)", bytes(4))),
        ("npy", npy_of("<f4", "(-1, -1)", bytes(4))),
        ("npy", npy_of("|O", "(1,)", pickle.dumps([1]))),
        ("npy", npy_of("|S0", f"({10**15},)")),
        ("safetensors", struct.pack("<Q", 2) + b"[]"),
        ("safetensors", struct.pack("<Q", 8) + b'{"a": 1}'),
        ("safetensors", tensor("[true]")),
        ("safetensors", tensor("[1.0]")),
        ("safetensors", tensor('"1"')),
        ("safetensors", tensor("null")),
        ("safetensors", tensor(f"[0, {2**33}]", "[0, 0]")),
        ("safetensors", tensor("[1]", '["0", "4"]')),
        ("safetensors", tensor("[1]", "[0]")),
        ("safetensors", tensor("[1]", dtype="[]")),
        ("pt", b""),
        ("pt", b"no pickle"),
        ("pt", npz()),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # mmengine's, which a .pt file brings along where it is there
def test_a_file_that_holds_no_array_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    if name == "pt":
        pytest.importorskip("torch", reason="the training side needs torch")
    (tmp_path / f"a.jpg.{name}").write_bytes(content)
    with pytest.raises(SourceError, match=rf"(?s)a\.jpg\.{name} cannot be read as one array: .*Write it again"):
        job.Finder(str(tmp_path))("a.jpg")


def test_a_header_that_claims_more_than_the_file_holds_is_damage_and_asks_for_no_memory(
    dataset: str, tmp_path: Path
) -> None:
    folder = Path(write_arrays(tmp_path / "arrays", dataset, ("npy",)))
    victim = folder / f"{open_dataset(dataset)[3].path}.npy"
    victim.write_bytes(npy_of("<f4", f"({10**15},)", bytes(64)))
    with pytest.raises(SourceError, match=rf"{victim} .*claims 4,000,000,000,000,000 bytes, 64 follow"):
        add_column(dataset, "latents", str(folder), num_proc=2, quiet=True)


def test_pt_files_without_torch_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg.pt").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "builder.mm.tensors", raising=False)
    with pytest.raises(MissingExtraError, match=r"a\.jpg\.pt needs torch.*laion6m\[mm\]"):
        job.Finder(str(tmp_path))("a.jpg")


def test_a_job_that_made_nothing_gives_its_name_to_the_next(dataset: str, tmp_path: Path) -> None:
    folder = write_arrays(tmp_path / "arrays", dataset, ("npy",))
    with pytest.raises(SourceError, match="TYPO"):
        add_column(dataset, "latents", str(tmp_path / "TYPO"), num_proc=1, quiet=True)
    assert add_column(dataset, "latents", folder, num_proc=1, quiet=True).rows == ROWS
    assert not (Path(dataset) / ".laion6m" / "columns" / "latents").exists()


def test_a_job_that_allowed_rows_without_an_array_is_not_continued_without_that(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(write_arrays(tmp_path / "arrays", dataset, ("npy",)))
    (folder / f"{open_dataset(dataset)[0].path}.npy").unlink()
    last, write = len(set(shards_of(dataset))) - 1, job._write_shard

    def stopped(unit: Any, report: Any) -> None:
        if unit.shard.shard.number == last:
            raise KeyboardInterrupt
        write(unit, report)

    monkeypatch.setattr(job, "_write_shard", stopped)
    with pytest.raises(InterruptedRunError):
        add_column(dataset, "latents", folder, missing_ok=True, num_proc=1, quiet=True)
    monkeypatch.setattr(job, "_write_shard", write)
    with pytest.raises(JobMismatchError, match="missing was"):
        add_column(dataset, "latents", folder, num_proc=1, quiet=True)
    assert add_column(dataset, "latents", folder, missing_ok=True, num_proc=1, quiet=True).missing == 1


def test_a_column_that_another_run_is_at_is_left_alone(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builder.store.ledger._PATIENCE", 0)
    with (
        Ledger(curate_columns.work_path(dataset, "latents")).locked(0, 1),
        pytest.raises(LockedError, match=f"process {os.getpid()}"),
    ):
        add_column(dataset, "latents", str(tmp_path), num_proc=1, quiet=True)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3)),
        np.array(5, dtype=np.int64),
        np.zeros((0, 4), dtype=np.uint8),
        np.array([True, False]),
    ],
)
def test_any_layout_of_numpy_becomes_plain(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    found = job.Finder(str(tmp_path))("a")
    assert found.shape == array.shape
    again = np.frombuffer(found.data, np.dtype(found.dtype)).reshape(found.shape)
    assert again.tolist() == array.tolist()


@pytest.mark.parametrize(
    ("data", "dtype", "shape"),
    [(b"1234", "float32", (2,)), (b"1234", "complex64", (1,)), (b"", "int8", (-1,)), (b"1", "object", (1,))],
)
def test_an_array_whose_parts_disagree_is_refused(data: bytes, dtype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="array"):
        Array(data, dtype, shape)


@pytest.mark.parametrize("name", ["", "a b", "../x", "image", "1st", "a.b", "a" * 101, "a" * 300])
def test_a_name_that_cannot_be_a_column_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="column"):
        add_column(str(tmp_path), name, str(tmp_path))


@pytest.fixture
def packed(column_source: Path, tmp_path: Path) -> str:
    out = str(tmp_path / "out")
    convert(str(column_source), out, num_proc=1, quiet=True)
    add_column(out, "latents", write_arrays(tmp_path / "arrays", out, ("npy",)), num_proc=1, quiet=True)
    return out


def test_a_column_of_another_index_is_refused(packed: str, column_source: Path, tmp_path: Path) -> None:
    again = str(tmp_path / "again")
    convert(str(column_source), again, ConvertOptions(max_shard_size=1_000_000), num_proc=1, quiet=True)
    os.makedirs(os.path.join(again, "meta", "columns"))
    os.rename(columns.column_index(packed, "latents"), columns.column_index(again, "latents"))
    with pytest.raises(IndexMismatchError, match="again since"):
        open_column(again, "latents")


@pytest.mark.parametrize("length", [0, 10, 300, -8])
def test_a_damaged_index_of_a_column_is_an_error(length: int, packed: str) -> None:
    path = columns.column_index(packed, "latents")
    with open(path, "rb+") as file:
        file.truncate(length if length >= 0 else os.path.getsize(path) + length)
    with pytest.raises(DamagedFileError, match="column"):
        open_column(packed, "latents")


@pytest.mark.parametrize("text", [b"[" * 200_000, b"[]", b"{}", b'{"version": 1}'])
def test_a_header_of_a_column_that_says_nothing_is_a_value_error(text: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        columns.ColumnHeader.from_json(text)


def test_a_replaced_file_of_a_column_is_an_error(packed: str) -> None:
    file = next((Path(packed) / "columns" / "latents").iterdir())
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(IndexMismatchError):
        open_column(packed, "latents")[0]


@pytest.mark.parametrize("row", [-1, ROWS])
def test_a_row_outside_is_an_index_error(row: int, packed: str) -> None:
    with pytest.raises(IndexError):
        open_column(packed, "latents")[row]


def test_batches_of_the_index_hold_a_fixed_number_of_rows(
    column_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row i lies in batch i // INDEX_BATCH_ROWS, wherever the shards are cut."""
    for module in (curate_columns, columns):
        monkeypatch.setattr(module, "INDEX_BATCH_ROWS", 7)
    out = str(tmp_path / "out")
    convert(str(column_source), out, ConvertOptions(max_shard_size=1_000_000), num_proc=1, quiet=True)
    add_column(out, "latents", write_arrays(tmp_path / "arrays", out, ("npy",)), num_proc=1, quiet=True)
    column = open_column(out, "latents")
    found = [column[row].data for row in range(ROWS)]
    assert found == [array_of(sample.path).tobytes() for sample in open_dataset(out)]


def test_row_groups_are_cut_by_bytes(packed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "GROUP_BYTES", 48 * 4)
    add_column(packed, "small", str(tmp_path / "arrays"), num_proc=1, quiet=True)
    file = next((Path(packed) / "columns" / "small").iterdir())
    metadata = pq.read_metadata(file)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [4] * 7 + [2]
    column: Any = open_column(packed, "small")
    assert column[29].data == array_of(open_dataset(packed)[29].path).tobytes()
