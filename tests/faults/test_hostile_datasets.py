"""Findings of fuzzing what is downloaded: each was a crash, a wrong read or terabytes of memory once."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from builder.base import schema
from builder.base.errors import DamagedFileError, Laion6mError
from builder.base.options import ConvertOptions, SamplePolicy
from builder.conversion.convert import convert
from builder.conversion.index import index
from builder.hf.units import ShardUnit
from builder.jobs.info import info
from builder.read.foreign import _counted
from builder.read.opening import open_dataset
from builder.read.reader import Reader
from builder.store.manifest import read_manifest
from builder.store.thrift import Value, get, i64, read_struct, write_struct
from builder.verification.verify import verify
from tests.sources import make_source, picture


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAION6M_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    source = make_source(folder / "source", shards=1, per_shard=6, faults=("blank_caption",))
    convert(str(source.path), str(folder / "out"), ConvertOptions(), num_proc=1, quiet=True)
    return folder / "out"


@pytest.fixture
def out(converted: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    for path in converted.rglob("*"):
        if path.is_file() and ".laion6m" not in path.parts:
            target = tmp_path / "out" / path.relative_to(converted)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return tmp_path / "out"


def with_footer(data: bytes, change: Callable[[dict[int, Value]], None]) -> bytes:
    """A Parquet file whose footer was changed."""
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    fields, _ = read_struct(data[start:-8])
    change(fields)
    footer = write_struct(fields)
    return data[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def claim(rows: int, *, group: int | None = None) -> Callable[[dict[int, Value]], None]:
    """So many rows, in the file and (unless ``group`` says otherwise) in its row group."""

    def change(fields: dict[int, Value]) -> None:
        fields[3] = i64(rows)
        get(fields, 4, 0)[3] = i64(rows if group is None else group)

    return change


def rename(fields: dict[int, Value]) -> None:
    """The last column's name becomes none in UTF-8."""
    last = get(fields, 2)[-1]
    last[4] = last[4]._replace(data=b"\xff" + last[4].data[1:])


def table_file(**options: Any) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"image": pa.array([picture(number) for number in range(3)]), "caption": ["a", "b", "c"]})
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def rewrite_index(out: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change the index's header and columns (name → Arrow array)."""
    path = out / schema.INDEX
    with pa.ipc.open_file(pa.BufferReader(path.read_bytes())) as file:
        batch, header = file.get_batch(0), json.loads(file.schema.metadata[schema.INDEX_METADATA_KEY])
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    change(header, columns)
    noted = batch.schema.with_metadata({schema.INDEX_METADATA_KEY: json.dumps(header).encode()})
    with pa.ipc.new_file(path, noted) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(list(columns.values()), schema=noted))


def touch_all(reader: Reader) -> None:
    """Everything a row has, however it is asked for."""
    for row in range(len(reader)):
        _ = (reader[row].image, repr(reader[row]), reader[row].annotation)
    _ = (list(reader), reader.columns().to_pylist(), reader.widths())


@pytest.mark.parametrize("options", [{"use_dictionary": False, "compression": "none"}, {"compression": "zstd"}, {}])
@pytest.mark.parametrize("change", [claim(10**12), claim(3, group=10**12), claim(10**9, group=3), claim(3, group=-5)])
def test_rows_that_are_only_claimed_get_no_memory(
    change: Callable[[dict[int, Value]], None], options: dict[str, Any], tmp_path: Path
) -> None:
    """pyarrow makes room for a row group's rows before it reads one: of a trillion, the system's killer saw to it."""
    (tmp_path / "a.parquet").write_bytes(with_footer(table_file(**options), change))
    with pytest.raises(DamagedFileError, match=r"claims|rows"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("change", [claim(3, group=1 << 40), rename], ids=["a trillion rows", "a name not UTF-8"])
def test_a_hostile_table_of_rejects_is_a_problem_in_words(change: Callable[[Any], None], out: Path) -> None:
    path = out / schema.REJECTS
    path.write_bytes(with_footer(path.read_bytes(), change))
    forge(out)
    assert not verify(str(out), num_proc=1, quiet=True).ok
    assert info(str(out)).path == str(out)


@pytest.mark.parametrize("change", [claim(5, group=1 << 40), rename], ids=["a trillion rows", "a name not UTF-8"])
def test_a_hostile_shard_whose_checksums_all_fit_is_a_problem_in_words(
    change: Callable[[Any], None], out: Path
) -> None:
    path = next((out / "data").iterdir())
    path.write_bytes(with_footer(path.read_bytes(), change))
    forge(out)
    assert not verify(str(out), num_proc=1, quiet=True).ok
    reader = open_dataset(out)
    assert reader[0].image[:2] == b"\xff\xd8"  # where the index says, whatever the footer
    with pytest.raises(Laion6mError):
        _ = reader[0].annotation


def forge(out: Path) -> None:
    """Make the index's and the manifest's checksums fit what was changed, as who meant harm would."""
    shard = next((out / "data").iterdir()).read_bytes()
    length = int.from_bytes(shard[-8:-4], "little")

    def change(header: dict[str, Any], columns: dict[str, Any]) -> None:
        footer = xxhash.xxh3_128_hexdigest(shard[len(shard) - 8 - length :])
        header["files"][0]["check"] = {"size": len(shard), "footer": footer}

    rewrite_index(out, change)
    manifest = read_manifest(str(out))
    for name in manifest.files:
        data = (out / name).read_bytes()
        manifest.files[name].update(size=len(data), xxh3_128=xxhash.xxh3_128_hexdigest(data))
    (out / schema.MANIFEST).write_bytes(manifest.to_json())


def test_text_offsets_whose_differences_wrap_around_are_seen(out: Path) -> None:
    """2^31 - 1 after 0, then -5: as 32-bit numbers each is larger than the one before by something positive."""
    path = out / schema.INDEX
    data = bytearray(path.read_bytes())
    with pa.ipc.open_file(pa.BufferReader(bytes(data))) as file:
        ends = file.get_batch(0).column("key").buffers()[1].to_pybytes()
    place = data.find(ends[:24])
    assert place > 0
    data[place + 4 : place + 16] = np.array([2**31 - 1, -5, 1], dtype="<i4").tobytes()
    path.write_bytes(data)
    with pytest.raises(DamagedFileError, match="offsets lie outside its text"):
        open_dataset(out).columns("key")


@pytest.mark.parametrize(
    "file",
    [
        {"kind": "rowgroups", "check": {"size": 4096}},  # no column to decode
        {"kind": "rowgroups", "check": {"column": 7}},
        {"kind": "exe", "check": {}},
        {"kind": "parquet", "check": {"size": "many"}},
        {"kind": "parquet", "check": {"footer": ["x"]}},
        {"kind": "tar", "check": {"mtime_ns": 1.5}},
        {"kind": "tar", "path": "../../../etc/passwd", "check": {}},
        {"kind": "tar", "path": "data/../../out/README.md", "check": {}},
    ],
)
def test_what_an_index_says_of_its_files_is_not_believed(file: dict[str, Any], out: Path) -> None:
    def change(header: dict[str, Any], columns: dict[str, Any]) -> None:
        header["files"][0] |= file

    rewrite_index(out, change)
    with pytest.raises(DamagedFileError):
        touch_all(open_dataset(out))


def test_members_of_a_folder_do_not_lead_out_of_it_either(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", "extracted", 1, 3)
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 100)
    index(str(source.path), str(tmp_path / "out"), num_proc=1, quiet=True)

    def change(header: dict[str, Any], columns: dict[str, Any]) -> None:
        columns["path"] = pa.array(["../../secret"] * 3)
        columns["size"] = pa.array([100] * 3, pa.int64())

    rewrite_index(tmp_path / "out", change)
    with pytest.raises(DamagedFileError, match="outside of its folder"):
        _ = open_dataset(tmp_path / "out")[0].image


def test_arrow_text_with_offsets_that_lie_is_refused_before_it_is_read(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([b"a", b"b", b"c"]), "caption": ["first", "second", "third"]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data = sink.getvalue().to_pybytes()
    ends = np.array([0, 5, 11, 16], dtype="<i4").tobytes()
    assert data.count(ends) == 1
    for lie in ([0, 5, 1 << 30, 16], [0, -5, 11, 16], [9, 5, 11, 16]):
        (tmp_path / "a.arrow").write_bytes(data.replace(ends, np.array(lie, dtype="<i4").tobytes()))
        with pytest.raises(DamagedFileError):
            open_dataset(tmp_path)


def test_an_arrow_shard_with_lying_offsets_gives_no_annotation(tmp_path: Path) -> None:
    """Its index trusts the size alone: what the file says of itself is checked when it is decoded."""
    source = make_source(tmp_path / "source", shards=1, per_shard=3)
    convert(str(source.path), str(tmp_path / "out"), ConvertOptions(format="arrow"), num_proc=1, quiet=True)
    path = next((tmp_path / "out" / "data").glob("*.arrow"))
    data = path.read_bytes()
    with pa.ipc.open_stream(data) as stream:
        ends = stream.read_next_batch().column("annotation").buffers()[1].to_pybytes()[:16]
    assert data.count(ends) == 1
    lying = np.frombuffer(ends, dtype="<i4").copy()
    lying[1] = 1 << 30
    path.write_bytes(data.replace(ends, lying.tobytes()))
    with pytest.raises(DamagedFileError):
        _ = open_dataset(tmp_path / "out")[0].annotation
    with pytest.raises(DamagedFileError):  # it was the end of the process once
        list(ShardUnit(str(path), None).tables(SamplePolicy(), Counter()))


@pytest.mark.parametrize("images", [0, 2, 4, 7])
def test_columns_of_one_file_that_disagree_on_their_number_of_rows_are_an_error(images: int) -> None:
    batch = pa.record_batch({"caption": ["a", "b", "c"]})
    with pytest.raises(DamagedFileError, match=f"{images} images"):
        list(_counted("a.parquet", [batch, batch], images))
    assert list(_counted("a.parquet", [batch, batch], 6)) == [batch, batch]


def test_a_table_with_two_columns_of_no_name_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([b"a"]), pa.array([b"b"])], names=["", ""])
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(Laion6mError, match="no column of images"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("change", [claim(10**12), rename], ids=["a trillion rows", "a name not UTF-8"])
def test_hostile_recaptions_are_an_error_with_the_file(change: Callable[[Any], None], tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", "img2dataset", 1, 3)
    path = Path(source.recaptions[0])
    path.write_bytes(with_footer(path.read_bytes(), change))
    options = ConvertOptions(recaptions=source.recaptions)
    with pytest.raises(Laion6mError, match=path.name):
        convert(str(source.path), str(tmp_path / "out"), options, num_proc=1, quiet=True)
