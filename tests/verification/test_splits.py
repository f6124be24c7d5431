"""parquet-java (Spark, Hive, Flink) reads a row group in the split that holds *its first column's offset + half of its
size*. Each row group of each file we write lies in one split, and folders of the first version are told of."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builder import info, open_dataset, verify
from builder.base import schema
from builder.base.errors import JobMismatchError
from builder.conversion.convert import convert
from builder.curate import arrays as columns
from builder.curate.add_column import add_column
from builder.hub import captions_only
from builder.hub.items import Digests
from builder.source.files import LocalFile
from builder.store import parquet, rejects
from builder.store.footers import missed_by_splits
from builder.store.manifest import read_manifest
from builder.store.thrift import Struct, get
from tests.sources import Source, make_source


def rows_by_split(path: Path, split: int) -> Counter[int]:
    """How often parquet-java reads each row group of a file, in splits of so many bytes."""
    metadata, size = pq.read_metadata(path), path.stat().st_size
    read: Counter[int] = Counter()
    for start in range(0, size, split):
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            chunks = [group.column(at) for at in range(group.num_columns)]
            first = min(filter(None, (chunks[0].data_page_offset, chunks[0].dictionary_page_offset)))
            middle = first + sum(chunk.total_compressed_size for chunk in chunks) // 2
            read[number] += start <= middle < min(start + split, size)
    return read


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return make_source(tmp_path / "source", faults=("image_missing", "blank_caption", "truncated_image"))


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several row groups in each file."""
    monkeypatch.setattr(parquet, "GROUP_BYTES", 4000)
    monkeypatch.setattr(parquet, "PAGE_BYTES", 1000)
    monkeypatch.setattr(rejects, "GROUP_ROWS", 2)
    monkeypatch.setattr(columns, "GROUP_BYTES", 100)


@pytest.mark.usefixtures("small_groups")
def test_every_row_group_of_every_file_is_read_once(source: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(str(source.path), str(out), num_proc=1, quiet=True)
    for sample in open_dataset(out):
        latents = tmp_path / "latents" / f"{sample.path}.npy"
        latents.parent.mkdir(parents=True, exist_ok=True)
        np.save(latents, np.full((2, 3), sample.row, dtype=np.float32))
    add_column(str(out), "latents", str(tmp_path / "latents"), num_proc=1, quiet=True)
    captions_only.captions_parcel(str(out), read_manifest(str(out)), Digests(str(out)), 1, quiet=True)
    files = sorted(out.rglob("*.parquet"))
    kinds = {path.relative_to(out).parts[:2] for path in files}
    assert {("data", "train-00000-of-00001.parquet"), ("meta", "rejects.parquet"), ("columns", "latents")} < kinds
    assert (".laion6m", "captions-only") in kinds
    groups = Counter({path.relative_to(out).parts[0]: pq.read_metadata(path).num_row_groups for path in files})
    assert min(groups["data"], groups["meta"], groups["columns"]) > 1
    for path in files:
        for split in (100, 5000, 1 << 30):
            assert set(rows_by_split(path, split).values()) <= {1}, path
        file = LocalFile(str(path))
        assert missed_by_splits(file) == (0, pq.read_metadata(path).num_rows)
        file.close()


@pytest.mark.usefixtures("small_groups")
def test_column_chunks_lie_in_the_order_of_the_schema(source: Source, tmp_path: Path) -> None:
    """What assumes so, without looking, is right."""
    convert(str(source.path), str(tmp_path / "out"), num_proc=1, quiet=True)
    metadata = pq.read_metadata(tmp_path / "out" / "data" / "train-00000-of-00001.parquet")
    starts = [
        metadata.row_group(group).column(column).data_page_offset
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    ]
    assert starts == sorted(starts)


# --- folders of the first version ---


def key_first(patch: pytest.MonkeyPatch) -> None:
    """Have ``convert`` list ``key`` before ``image``, as it did."""
    names = ["key", "image", *schema.ROW.names[2:]]
    features = {name: schema.FEATURES[name] for name in names}
    metadata = {schema.HUGGINGFACE_KEY: json.dumps({"info": {"features": features}}).encode()}
    row = pa.schema([schema.ROW.field(name) for name in names])
    patch.setattr(schema, "ROW", row)
    patch.setattr(schema, "FEATURES", features)
    patch.setattr(schema, "SHARD_SCHEMA", row.with_metadata(metadata))
    patch.setattr(parquet, "_template", parquet._template.__wrapped__)
    new_footer = parquet.ParquetShardWriter._footer

    def footer(writer: parquet.ParquetShardWriter) -> bytes:
        for group in writer._groups:
            chunks: list[Struct] = get(group, 1)
            chunks.insert(0, chunks.pop(2))
        for indexes in (*writer._column_indexes, *writer._offset_indexes):
            indexes.insert(0, indexes.pop(2))  # type: ignore[arg-type]
        return new_footer(writer)

    patch.setattr(parquet.ParquetShardWriter, "_footer", footer)


@pytest.fixture
def old(source: Source, tmp_path: Path) -> Path:
    out = tmp_path / "old"
    with pytest.MonkeyPatch.context() as patch:
        key_first(patch)
        convert(str(source.path), str(out), num_proc=1, quiet=True)
    assert pq.read_schema(next((out / "data").iterdir())).names[:2] == ["key", "image"]
    return out


def test_an_old_folder_is_sound_and_verify_and_info_say_what_spark_would_miss(old: Path, source: Source) -> None:
    path = next((old / "data").iterdir())
    assert set(rows_by_split(path, 1 << 30).values()) == {0}
    rows = len(source.rows)
    found = verify(str(old), source=str(source.path), quiet=True)
    assert (found.ok, found.problems, found.rows) == (True, (), rows)
    [note] = found.notes
    assert f"Spark, Hive, Flink and other readers built on parquet-java would leave out {rows} of {rows} rows" in note
    assert "convert again into another OUT" in note
    assert info(str(old)).to_json()["note"] == note
    assert note in "\n".join(info(str(old)).lines)


def test_a_damaged_footer_says_nothing_of_spark(old: Path) -> None:
    path = next((old / "data").iterdir())
    data = path.read_bytes()
    path.write_bytes(data[:-100] + bytes(20) + data[-80:])
    found = verify(str(old), quiet=True)
    assert (found.ok, found.notes) == (False, ())


def test_an_old_folder_reads_as_a_new_one(old: Path, source: Source, tmp_path: Path) -> None:
    import datasets

    new = tmp_path / "new"
    convert(str(source.path), str(new), num_proc=1, quiet=True)
    plain = [[(s.key, s.image, s.caption, s.width, s.annotation) for s in open_dataset(each)] for each in (old, new)]
    assert plain[0] == plain[1]
    # with the index away, its Parquet files are anybody's
    (old / "meta" / "index.arrow").rename(tmp_path / "index.arrow")
    assert [(s.key, s.image, s.caption) for s in open_dataset(old)] == [each[:3] for each in plain[1]]
    both = [
        datasets.load_dataset(str(each), split="train", cache_dir=str(tmp_path / "cache")).cast_column(
            "image", datasets.Image(decode=False)
        )
        for each in (old, new)
    ]
    assert sorted(both[0].column_names) == sorted(both[1].column_names)
    assert list(both[0]) == list(both[1])


def test_a_new_folder_has_nothing_to_note(source: Source, tmp_path: Path) -> None:
    convert(str(source.path), str(tmp_path / "new"), num_proc=1, quiet=True)
    assert verify(str(tmp_path / "new"), quiet=True).notes == ()
    assert "note" not in info(str(tmp_path / "new")).to_json()


def test_the_work_of_an_old_run_is_not_carried_on(old: Path, source: Source) -> None:
    """Else some shards would list key first, and some the image."""
    job = old / ".laion6m" / "job.json"
    document = json.loads(job.read_text())
    del document["columns"]
    job.write_text(json.dumps(document))
    with pytest.raises(JobMismatchError, match="an earlier version began it, with the columns in another"):
        convert(str(source.path), str(old), num_proc=1, quiet=True)


def test_half_of_a_group_is_counted_as_parquet_java_does(tmp_path: Path) -> None:
    """Its files by others: with dictionaries, where the data comes second."""
    table = pa.table({"word": ["a", "b"] * 500, "number": list(range(1000))})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=100)
    file = LocalFile(str(tmp_path / "x.parquet"))
    assert missed_by_splits(file) == (0, 1000)
    file.close()
