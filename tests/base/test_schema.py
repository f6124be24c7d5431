"""Names and columns on disk: what writers and readers agree on, and other people's scripts rely on."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.base import schema
from builder.base.schema import IndexedFile, IndexHeader, ShardName


def test_a_row_is_what_the_contract_says() -> None:
    assert [(field.name, str(field.type)) for field in schema.ROW] == [
        ("image", "struct<bytes: binary, path: string>"),
        ("key", "string"),
        ("caption", "string"),
        ("width", "int32"),
        ("height", "int32"),
        ("annotation", "string"),
    ]
    assert all(field.nullable for field in schema.ROW)


def test_files_lie_where_the_contract_says() -> None:
    assert (schema.INDEX, schema.REJECTS, schema.MANIFEST, schema.CARD, schema.WORK) == (
        "meta/index.arrow",
        "meta/rejects.parquet",
        "meta/manifest.json",
        "README.md",
        ".laion6m",
    )


def test_features_are_what_datasets_makes_of_the_schema() -> None:
    from datasets import Features

    features = Features.from_arrow_schema(schema.SHARD_SCHEMA)
    assert features.to_dict() == Features.from_dict(schema.FEATURES).to_dict()
    assert features.arrow_schema.remove_metadata() == schema.ROW
    assert type(features["image"]).__name__ == "Image"


def test_rejects_have_the_columns_of_the_contract() -> None:
    assert schema.REJECT_ROW.names == ["position", "key", "reason", "detail", "source"]


def test_index_columns_that_are_not_aligned_stand_behind_those_that_are() -> None:
    assert schema.INDEX_TABLE.names == [*schema.INDEX_ROW.names, "find_hash", "find_row"]
    assert schema.INDEX_BATCH_ROWS & (schema.INDEX_BATCH_ROWS - 1) == 0  # row i lies in batch i >> 16


@pytest.mark.parametrize(
    ("name", "text", "path"),
    [
        (ShardName(3, 16), "train-00003-of-00016.parquet", "data/train-00003-of-00016.parquet"),
        (ShardName(0, 1, ".arrow"), "train-00000-of-00001.arrow", "data/train-00000-of-00001.arrow"),
        (ShardName(123456, 200000), "train-123456-of-200000.parquet", "data/train-123456-of-200000.parquet"),
    ],
)
def test_a_shard_s_name_is_formatted_and_parsed(name: ShardName, text: str, path: str) -> None:
    assert (str(name), name.path, ShardName.parse(text)) == (text, path, name)


@given(st.integers(0, 10**7), st.integers(1, 10**7), st.sampled_from([".parquet", ".arrow"]))
def test_every_shard_name_reads_back(number: int, total: int, suffix: str) -> None:
    name = ShardName(number, total, suffix)
    assert ShardName.parse(str(name)) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "train-3-of-16.parquet",
        "test-00003-of-00016.parquet",
        "train-00003-of-00016.csv",
        "train-00003-of-00016.parquet.tmp",
        "xtrain-00003-of-00016.parquet",
        "train-00003-of-00016.parquet\n",
        "train-0000x-of-00016.parquet",
    ],
)
def test_other_names_are_no_shards(text: str) -> None:
    assert ShardName.parse(text) is None


checks = st.fixed_dictionaries({"size": st.integers(0, 2**63 - 1), "footer": st.text("0123456789abcdef", max_size=32)})
paths = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
files = st.builds(IndexedFile, paths, st.sampled_from(["parquet", "tar"]), st.integers(0, 2**40), checks)
headers = st.builds(
    IndexHeader, st.integers(0, 9), paths, st.integers(0, 2**40), st.lists(files, max_size=3).map(tuple)
)


@given(headers)
def test_an_index_header_comes_back(header: IndexHeader) -> None:
    assert IndexHeader.from_json(header.to_json()) == header


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["version", "root", "rows", "files", "path", "kind", "check", "x"]), inner, max_size=5
        )
    ),
    max_leaves=12,
)


@given(anything)
def test_a_header_of_another_shape_is_one_of_three_errors(value: Any) -> None:
    try:
        IndexHeader.from_json(json.dumps(value).encode())
    except (KeyError, TypeError, ValueError):
        return
    assert isinstance(value, dict)


VALID: dict[str, Any] = {
    "version": 1,
    "root": "",
    "rows": 2,
    "files": [{"path": "a.tar", "kind": "tar", "rows": 2, "check": {"size": 9}}],
}


@pytest.mark.parametrize(
    "change",
    [
        {"rows": float("inf")},  # int() of it is an OverflowError, which is none of the three
        {"rows": "2"},
        {"rows": None},
        {"version": 1.5},
        {"root": None},
        {"files": {}},
        {"files": ["a.tar"]},
        {"files": [{**VALID["files"][0], "path": 5}]},  # would be a TypeError only when the file is opened
        {"files": [{**VALID["files"][0], "kind": None}]},
        {"files": [{**VALID["files"][0], "rows": True}]},
        {"files": [{**VALID["files"][0], "check": [["size", 9]]}]},
        {"files": [{"path": "a.tar"}]},
    ],
    ids=str,
)
def test_a_header_with_a_wrong_value_is_refused(change: dict[str, Any]) -> None:
    IndexHeader.from_json(json.dumps(VALID).encode())
    with pytest.raises((KeyError, TypeError, ValueError)):
        IndexHeader.from_json(json.dumps(VALID | change).encode())


def test_a_header_nested_without_end_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="nested"):
        IndexHeader.from_json(b"[" * 100_000)


def test_the_shard_schema_says_image_to_readers_that_look_at_metadata_only() -> None:
    info = json.loads(schema.SHARD_SCHEMA.metadata[b"huggingface"])["info"]
    assert info["features"]["image"] == {"_type": "Image"}
    assert pa.schema(list(schema.SHARD_SCHEMA)) == schema.ROW
