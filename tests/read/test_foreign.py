from __future__ import annotations

import io
import json
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from builder.base.errors import DamagedFileError, IndexMismatchError, Laion6mError, OptionError, SourceError
from builder.conversion.convert import convert
from builder.read import column_types, foreign, groups
from builder.read.opening import open_dataset
from builder.read.reader import Reader
from builder.store.thrift import BINARY, Struct, Value, get, i32, i64, read_struct, write_struct
from tests.sources import make_source, picture

IMAGES = [picture(number) for number in range(7)]
PLAIN: dict[str, Any] = {"compression": "none", "use_dictionary": False}
PATHS = [f"{number}.jpg" for number in range(7)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAION6M_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def images(kind: pa.DataType | None = None, mask: list[bool] | None = None) -> pa.Array:
    kind = kind or pa.binary()
    columns = [pa.array(IMAGES, kind), pa.array(PATHS, pa.string())]
    return pa.StructArray.from_arrays(columns, ["bytes", "path"], mask=pa.array(mask) if mask else None)


def table(**columns: Any) -> pa.Table:
    return pa.table({"image": images(), "caption": [f"caption {number}" for number in range(7)], **columns})


def write_stream(path: Path, content: pa.Table, **options: Any) -> None:
    with pa.ipc.new_stream(path, content.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(content, max_chunksize=3)


def check(reader: Reader) -> None:
    """All ways lead to the seven images."""
    assert [sample.image for sample in reader] == IMAGES
    assert [reader[row].image for row in (6, 0, -7)] == [IMAGES[6], IMAGES[0], IMAGES[0]]
    assert [sample.image for sample in reader[[5, 1, 1]]] == [IMAGES[5], IMAGES[1], IMAGES[1]]
    for sample, image in zip(reader, IMAGES, strict=True):
        with Image.open(io.BytesIO(image)) as opened:
            assert (sample.width, sample.height) == opened.size


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"row_group_size": 2},
        {"data_page_size": 1, "write_batch_size": 1},
        {"data_page_version": "2.0"},
        {"data_page_version": "2.0", "row_group_size": 3, "data_page_size": 1, "write_batch_size": 1},
        {"use_content_defined_chunking": True},
        {"write_page_index": True},
        {"write_page_checksum": True},
        {"version": "1.0"},
        {"store_schema": False},
        {"column_encoding": {"caption": "DELTA_BYTE_ARRAY", "image.bytes": "PLAIN", "image.path": "PLAIN"}},
    ],
)
def test_parquet_of_any_plain_kind_is_pointed_into(options: dict[str, Any], folder: Path) -> None:
    pq.write_table(table(), folder / "a.parquet", **{**PLAIN, **options})
    reader = open_dataset(folder)
    check(reader)
    assert [file.kind for file in reader.shards] == ["parquet"]
    assert [sample.caption for sample in reader] == [f"caption {number}" for number in range(7)]
    assert reader.find("3").image == IMAGES[3]


@pytest.mark.parametrize(
    "options",
    [
        {},  # pyarrow's own: snappy, dictionaries
        {"compression": "zstd", "use_dictionary": False},
        {"compression": "none", "use_dictionary": True},
        {"compression": "gzip", "row_group_size": 2},
        {"compression": {"image.bytes": "snappy"}, "use_dictionary": False, "row_group_size": 3},
        {"compression": "none", "use_dictionary": False, "column_encoding": {"image.bytes": "DELTA_LENGTH_BYTE_ARRAY"}},
    ],
)
def test_compressed_or_encoded_images_are_read_by_row_group_and_that_is_said_once(
    options: dict[str, Any], folder: Path
) -> None:
    pq.write_table(table(), folder / "a.parquet", **options)
    with pytest.warns(UserWarning, match=r"a\.parquet: .* compressed or dictionary-encoded") as caught:
        reader = open_dataset(folder)
    assert len(caught) == 1
    check(reader)
    assert [file.kind for file in reader.shards] == ["rowgroups"]
    check(open_dataset(folder))  # from the cache, and without a warning


def test_a_batch_of_compressed_rows_decodes_each_row_group_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(table(), folder / "a.parquet", row_group_size=2)
    with pytest.warns(UserWarning, match="compressed"):
        reader = open_dataset(folder)
    monkeypatch.setattr(groups, "_KEPT_BYTES", 0)
    decoded: list[int] = []
    decode = reader._groups._decode
    monkeypatch.setattr(reader._groups, "_decode", lambda *where: decoded.append(where[2]) or decode(*where))
    assert [sample.image for sample in reader[[5, 0, 4, 1, 5]]] == [IMAGES[row] for row in (5, 0, 4, 1, 5)]
    assert decoded == [0, 2]


def test_of_many_slow_files_it_is_said_once(folder: Path) -> None:
    for name in ("a", "b", "c"):
        pq.write_table(table(), folder / f"{name}.parquet", **(PLAIN if name == "a" else {}))
    with pytest.warns(UserWarning, match=r"b\.parquet: .* compressed or dictionary-encoded") as caught:
        reader = open_dataset(folder)
    assert [warning.filename for warning in caught] == [__file__]
    assert [file.kind for file in reader.shards] == ["parquet", "rowgroups", "rowgroups"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_images_may_be_structs_or_plain_bytes(kind: pa.DataType, nested: bool, form: str, folder: Path) -> None:
    content = pa.table({"jpg": images(kind) if nested else pa.array(IMAGES, kind), "txt": ["x"] * 7})
    if form == "parquet":
        pq.write_table(content, folder / "a.parquet", **PLAIN)
    else:
        write_stream(folder / "a.arrow", content)
    reader = open_dataset(folder)
    check(reader)
    assert [sample.key for sample in reader][:2] == (["0", "1"] if nested else ["000000000", "000000001"])


def datasets_rows() -> Any:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": [{"bytes": image, "path": path} for image, path in zip(IMAGES, PATHS, strict=True)]}
    return datasets.Dataset.from_dict({**rows, "text": [f"t{number}" for number in range(7)]}, features=features)


def test_what_datasets_writes_as_parquet_is_read(folder: Path) -> None:
    dataset = datasets_rows()
    dataset.to_parquet(folder / "train-00000-of-00001.parquet", batch_size=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # versions that compress images
        reader = open_dataset(folder)
    check(reader)
    assert [sample.caption for sample in reader] == dataset["text"][:]


def test_what_datasets_saves_to_disk_is_read(folder: Path) -> None:
    datasets_rows().save_to_disk(folder / "saved", num_shards=3)
    reader = open_dataset(folder / "saved")
    check(reader)
    assert len(reader.shards) == 3
    assert reader[4].caption == "t4"


def test_a_conversion_without_its_meta_is_read_alike(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", faults=["stem_twin", "too_wide"])
    from builder.base.options import ConvertOptions

    for form in ("parquet", "arrow"):
        out = tmp_path / form
        convert(str(source.path), str(out), ConvertOptions(format=form), num_proc=1, quiet=True)
        with_meta = list(open_dataset(out))
        (out / "meta").rename(tmp_path / f"{form}-meta")
        reader = open_dataset(out)
        assert len(reader) == len(with_meta)
        for sample, expected in zip(reader, with_meta, strict=True):
            assert (sample.key, sample.image, sample.caption) == (expected.key, expected.image, expected.caption)
            assert (sample.annotation, sample.width, sample.path) == (
                expected.annotation,
                expected.width,
                expected.path,
            )
            assert reader.find(sample.key).row == sample.row


def test_a_saved_dataset_without_rows_is_an_empty_one(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"image": IMAGES, "text": ["a"] * len(IMAGES)})  # of Image datasets 3 saves none
    rows.select([]).save_to_disk(folder / "saved")
    reader = open_dataset(folder / "saved")
    assert (len(reader), list(reader), reader[[]]) == (0, [], [])


def test_warnings_name_the_line_that_opens_the_folder(folder: Path) -> None:
    for name in ("train-00000-of-00002.parquet", "test-00000-of-00001.parquet"):
        pq.write_table(table(), folder / name, **PLAIN)
    with pytest.warns(UserWarning, match="split|missing") as caught:
        open_dataset(folder)
    assert [warning.filename for warning in caught] == [__file__] * 2


def test_several_files_are_one_dataset_by_the_order_of_their_paths(folder: Path) -> None:
    for number, place in enumerate(("b/1.parquet", "a/2.parquet", "c.arrow", "a/10.parquet")):
        (folder / place).parent.mkdir(exist_ok=True)
        part = table(key=[f"{number}-{row}" for row in range(7)]).slice(number, 2)
        if place.endswith("parquet"):
            pq.write_table(part, folder / place, **PLAIN)
        else:
            write_stream(folder / place, part)
    reader = open_dataset(folder)
    assert [sample.key for sample in reader] == ["3-3", "3-4", "1-1", "1-2", "0-0", "0-1", "2-2", "2-3"]
    assert [sample.image for sample in reader] == [IMAGES[row] for row in (3, 4, 1, 2, 0, 1, 2, 3)]
    assert [sample.position for sample in reader] == [0, 1] * 4


# Odd columns


def features(**kinds: str) -> dict[bytes, bytes]:
    return {b"huggingface": json.dumps({"info": {"features": {n: {"_type": k} for n, k in kinds.items()}}}).encode()}


@pytest.mark.parametrize(
    ("before", "name", "metadata"),
    [
        ("sound", "picture", features(sound="Audio", picture="Image")),
        ("image", "picture", features(image="Audio", picture="Image")),  # whatever it is called
        ("latent", "jpg", None),
        ("latent", "image", None),
    ],
)
def test_of_several_columns_of_bytes_the_image_is_found(
    before: str, name: str, metadata: dict[bytes, bytes] | None, folder: Path
) -> None:
    other: Any = pa.array([b"RIFF"] * 7, pa.binary())
    column: Any = pa.array(IMAGES, pa.binary())
    if metadata:
        other, column = (
            pa.StructArray.from_arrays([each, pa.array(PATHS)], ["bytes", "path"]) for each in (other, column)
        )
    table = pa.table({before: other, name: column, "txt": [f"caption {n}" for n in range(7)]})
    pq.write_table(table.replace_schema_metadata(metadata), folder / "a.parquet", **PLAIN)
    sample = open_dataset(folder)[1]
    assert (sample.image, sample.caption) == (IMAGES[1], "caption 1")


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_of_columns_that_are_equally_likely_it_is_said_which_is_taken(form: str, folder: Path) -> None:
    other = pa.StructArray.from_arrays([pa.array(IMAGES[::-1]), pa.array(PATHS)], ["bytes", "path"])
    write_as(form, folder, pa.table({"before": other, "after": images(), "latent": [b"x"] * 7, "text": ["t"] * 7}))
    for _ in range(2):  # the second time from the cache
        with pytest.warns(UserWarning, match="each of the columns before, after may be the images") as caught:
            assert open_dataset(folder)[0].image == IMAGES[6]
        assert [warning.filename for warning in caught] == [__file__]
    check(open_dataset(folder, image_column="after"))
    assert open_dataset(folder, image_column="latent")[0].image == b"x"
    for wrong in ("text", "nowhere", ""):
        with pytest.raises(
            OptionError, match=r"has no such column of images\. Its columns: before, after, latent, text"
        ):
            open_dataset(folder, image_column=wrong)


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_a_dot_may_be_part_of_a_name(form: str, folder: Path) -> None:
    table = pa.table({"left.jpg": pa.array(IMAGES, pa.binary())})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if form == "parquet":
            pq.write_table(table, folder / "a.parquet")
        else:
            write_stream(folder / "a.arrow", table)
        reader = open_dataset(folder)
    assert [reader[row].image for row in range(7)] == IMAGES


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("mask", [[False, True, False, False, False, False, True], None])
def test_null_images_are_said_to_be_none_and_the_others_are_read(
    form: str, compressed: bool, mask: list[bool] | None, folder: Path
) -> None:
    if mask is None:  # the struct is there, its bytes are not
        values = pa.array([None if number in (1, 6) else image for number, image in enumerate(IMAGES)], pa.binary())
        column = pa.StructArray.from_arrays([values, pa.array(PATHS)], ["bytes", "path"])
    else:
        column = images(mask=mask)
    content = pa.table({"image": column})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if form == "parquet":
            pq.write_table(content, folder / "a.parquet", **(PLAIN if not compressed else {}))
        else:
            write_stream(folder / "a.arrow", content)
        reader = open_dataset(folder)
    assert len(reader) == 7
    for row in range(7):
        if row in (1, 6):
            assert (reader[row].width, reader[row].height) == (0, 0)
            assert reader[[0, row]][0].image == IMAGES[0]  # a batch does not fail for a row that has none
            for touch in (lambda row=row: reader[row].image, lambda row=row: reader[[0, row]][1].image):  # type: ignore[misc]
                with pytest.raises(DamagedFileError, match=f"row {row}: it has no image"):
                    touch()
        else:
            assert reader[row].image == IMAGES[row]


ODD_COLUMNS: list[tuple[dict[str, Any], dict[str, list[object]]]] = [
    ({"caption": [["a", "b"]] * 7}, {"caption": [""] * 7}),
    ({"caption": [1] * 7, "text": ["t"] * 7}, {"caption": ["t"] * 7}),  # the next that is text
    ({"caption": pa.array(["a"] * 7).dictionary_encode()}, {"caption": ["a"] * 7}),
    ({"caption": pa.array(["a"] * 7, pa.large_string())}, {"caption": ["a"] * 7}),
    ({"caption": pa.nulls(7)}, {"caption": [""] * 7}),
    ({"caption": pa.array(["a", None] * 3 + ["b"])}, {"caption": ["a", ""] * 3 + ["b"]}),
    ({"re_caption": ["r"] * 7}, {"caption": ["r"] * 7}),
    ({"key": list(range(7))}, {"key": [str(number) for number in range(7)]}),
    ({"key": ["k", *[None] * 6]}, {"key": ["k", "1", "2", "3", "4", "5", "6"]}),
    ({"__key__": [f"w{number}" for number in range(7)]}, {"key": [f"w{number}" for number in range(7)]}),
    ({"key": [1.5] * 7}, {"key": ["0", "1", "2", "3", "4", "5", "6"]}),
    ({"width": ["a"] * 7, "height": ["b"] * 7}, {}),  # then the images themselves are asked
    ({"width": [float("nan")] * 7, "height": [1.0] * 7}, {}),
    ({"width": [2**40] * 7, "height": pa.array([7] * 7, pa.uint8())}, {"width": [0] * 7, "height": [7] * 7}),
    ({"width": pa.array([None] * 7, pa.int64()), "height": [-1] * 7}, {"width": [0] * 7, "height": [0] * 7}),
    ({"width": [9] * 7}, {}),  # one side alone is no size
]


UNCAPTIONED = pytest.mark.filterwarnings("ignore:.*no column is known as a caption:UserWarning")


@pytest.mark.slow
@UNCAPTIONED
@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize(("columns", "expected"), ODD_COLUMNS)
def test_columns_of_other_types_are_taken_as_what_they_can_be(
    columns: dict[str, Any], expected: dict[str, list[object]], form: str, folder: Path
) -> None:
    content = pa.table({"image": images(), **columns})
    if form == "parquet":
        pq.write_table(content, folder / "a.parquet", **PLAIN)
    else:
        write_stream(folder / "a.arrow", content)
    reader = open_dataset(folder)
    assert [sample.image for sample in reader] == IMAGES
    for name, values in expected.items():
        assert [getattr(sample, name) for sample in reader] == values
    if not expected:
        check(reader)


def write_as(form: str, folder: Path, content: pa.Table) -> None:
    if form == "parquet":
        pq.write_table(content, folder / "a.parquet", **PLAIN)
    else:
        write_stream(folder / "a.arrow", content)


UNKNOWN = {
    "url": ["u"] * 7,
    "description": [f"d{number}" for number in range(7)],
    "labels": [["a", "b"]] * 7,
    "meta": pa.array([None, *({"alt": f"a{number}", "n": number} for number in range(1, 7))]),
    "score": [0.5] * 7,
    "__key__": [f"k{number}" for number in range(7)],
}


# --- what others write ---


def footer_of(data: bytes) -> Struct:
    return read_struct(data[-8 - int.from_bytes(data[-8:-4], "little") : -8])[0]


def with_footer(front: bytes, footer: Struct) -> bytes:
    tail = write_struct(footer)
    return front + tail + len(tail).to_bytes(4, "little") + b"PAR1"


def without_dictionary_headers(data: bytes) -> bytes:
    """Column sizes as parquet-mr wrote them before 1.2.9: they leave out the header of the dictionary page."""
    footer = footer_of(data)
    for group in get(footer, 4):
        for chunk in get(group, 1):
            at = get(chunk, 3, 11)
            if at:
                get(chunk, 3)[7] = i64(get(chunk, 3, 7) - (read_struct(data, at)[1] - at))
    footer[6] = Value(BINARY, b"parquet-mr version 1.2.8 (build abc)")
    return with_footer(data[: -8 - int.from_bytes(data[-8:-4], "little")], footer)


@pytest.mark.parametrize("dictionary", [["image"], ["caption"], True])
@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_column_sizes_may_leave_out_the_header_of_the_dictionary(
    dictionary: Any, compression: str, folder: Path
) -> None:
    """PARQUET-816."""
    content = pa.table({"image": pa.array(IMAGES, pa.binary()), "caption": ["a caption"] * 7})
    pq.write_table(content, folder / "a.parquet", compression=compression, use_dictionary=dictionary)
    data = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(without_dictionary_headers(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some are decoded
        reader = open_dataset(folder)
    check(reader)
    assert [sample.caption for sample in reader] == ["a caption"] * 7


def test_a_page_of_an_unknown_kind_is_decoded_and_that_is_said(folder: Path) -> None:
    """Here: the size of an uncompressed page told in two ways. pyarrow does not look at the one."""
    content = pa.table({"image": pa.array(IMAGES, pa.binary()), "caption": ["a caption"] * 7})
    pq.write_table(content, folder / "a.parquet", **PLAIN, write_statistics=False)
    data = (folder / "a.parquet").read_bytes()
    footer = footer_of(data)
    header, after = read_struct(data, 4)
    header[1] = i32(get(header, 1))
    header[2], front = i32(get(header, 2) - 1), data[after : -8 - int.from_bytes(data[-8:-4], "little")]
    page = write_struct(header)
    assert len(page) == after - 4  # else all that lies behind it moves
    (folder / "a.parquet").write_bytes(with_footer(data[:4] + page + front, footer))
    with pytest.warns(
        UserWarning, match=r"a\.parquet: the images are in pages of an unknown kind .*two sizes"
    ) as caught:
        reader = open_dataset(folder)
    assert len(caught) == 1
    check(reader)
    assert [file.kind for file in reader.shards] == ["rowgroups"]


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("text", [pa.binary(), pa.large_binary()])
def test_text_in_columns_of_bytes_is_text(text: pa.DataType, form: str, folder: Path) -> None:
    """Without the UTF8 mark, as ClickHouse's String and columns of Hive are."""
    captions = [None, "ä", *[f"caption {number}" for number in range(5)]]
    columns = {
        "caption": pa.array([each and each.encode() for each in captions], text),
        "annotation": pa.array([b"{}"] * 7, text),
        "key": pa.array([f"k{number}".encode() for number in range(7)], text),
        "data": pa.array(IMAGES, pa.binary()),
    }
    write_as(form, folder, pa.table(columns))
    reader = open_dataset(folder)
    check(reader)
    assert [sample.caption for sample in reader] == ["", *captions[1:]]
    assert reader.find("k3").image == IMAGES[3]
    assert reader[2].annotation == "{}"


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("nested", [False, True])
def test_images_in_columns_of_text_are_images(nested: bool, form: str, folder: Path) -> None:
    """With the UTF8 mark, as ClickHouse writes every String."""
    column: Any = pa.array(IMAGES, pa.binary()).view(pa.string())
    if nested:
        column = pa.StructArray.from_arrays([column, pa.array(PATHS)], ["bytes", "path"])
    write_as(form, folder, pa.table({"caption": [f"caption {number}" for number in range(7)], "picture": column}))
    for reader in (open_dataset(folder), open_dataset(folder, image_column="picture")):
        check(reader)
        assert [sample.caption for sample in reader] == [f"caption {number}" for number in range(7)]
        assert reader[3].path == ("3.jpg" if nested else "000000003")


def test_a_struct_of_bytes_may_have_its_path_in_bytes(folder: Path) -> None:
    parts = [pa.array(IMAGES), pa.array([path.encode() for path in PATHS])]
    column = pa.StructArray.from_arrays(parts, ["bytes", "path"])
    pq.write_table(pa.table({"image": column, "caption": [b"c"] * 7}), folder / "a.parquet", **PLAIN)
    reader = open_dataset(folder)
    check(reader)
    assert [sample.path for sample in reader] == PATHS
    assert reader[1].caption == "c"


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_captions_of_bytes_under_no_known_name_are_missed_and_can_be_named(form: str, folder: Path) -> None:
    write_as(form, folder, pa.table({"image": images(), "words": [b"w"] * 7}))
    with pytest.warns(UserWarning, match=r"no column is known as a caption .* text in words\."):
        assert open_dataset(folder)[0].caption == ""
    assert open_dataset(folder, caption_column="words")[0].caption == "w"


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_bytes_that_begin_as_text_and_are_none_are_a_clear_error(form: str, folder: Path) -> None:
    write_as(form, folder, pa.table({"image": images(), "caption": [b"c", b"\xff", *[b"c"] * 5]}))
    with pytest.raises(DamagedFileError, match="utf-8"):
        open_dataset(folder)


def test_where_one_column_is_of_bytes_none_is_looked_into(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each opening that would be a read of the images."""
    pq.write_table(table(), folder / "a.parquet", **PLAIN)
    monkeypatch.setattr(column_types, "_first", lambda *_: pytest.fail("looked into it"))
    check(open_dataset(folder))


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_captions_under_no_known_name_are_missed_at_each_opening(form: str, folder: Path) -> None:
    write_as(form, folder, pa.table({"image": images(), **UNKNOWN}))
    for _ in range(2):  # the second time from the cache
        with pytest.warns(UserWarning, match="no column is known as a caption") as caught:
            reader = open_dataset(folder)
        (warning,) = caught
        assert warning.filename == __file__
        words = str(warning.message)
        assert "text in url, description, labels (lists of text, which cannot be captions), meta.alt." in words
        assert "caption_column=NAME" in words
        assert reader[3].caption == ""


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_captions_that_some_of_the_files_do_not_have_are_missed(form: str, folder: Path) -> None:
    write_as(form, folder, table())
    (folder / f"a.{form}").rename(folder / f"0.{form}")
    write_as(form, folder, pa.table({"image": images(), **UNKNOWN}))
    with pytest.warns(UserWarning, match=rf"a\.{form} has no captions\. Other files have them, in caption") as caught:
        reader = open_dataset(folder)
    assert [warning.filename for warning in caught] == [__file__]
    assert (reader[6].caption, reader[7].caption) == ("caption 6", "")


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("name", "captions"),
    [("description", [f"d{number}" for number in range(7)]), ("meta.alt", ["", *(f"a{n}" for n in range(1, 7))])],
)
def test_a_column_of_captions_can_be_named(name: str, captions: list[str], form: str, folder: Path) -> None:
    content = pa.table({"image": images(), "caption": ["the other"] * 7, **UNKNOWN})
    write_as(form, folder, content)
    other = open_dataset(folder)
    reader = open_dataset(folder, caption_column=name)
    check(reader)
    assert [sample.caption for sample in reader] == captions
    assert [sample.caption for sample in pickle.loads(pickle.dumps(reader))] == captions
    assert other[1].caption == open_dataset(folder)[1].caption == "the other"
    assert reader.identity == other.identity  # of the same files


@pytest.mark.parametrize("name", ["nowhere", "labels", "score", "image", "meta", "meta.n", ""])
def test_a_name_that_is_no_column_of_text_is_an_error_that_names_those_there_are(name: str, folder: Path) -> None:
    write_as("parquet", folder, pa.table({"image": images(), **UNKNOWN}))
    with pytest.raises(OptionError, match=r"a\.parquet has no such column of text\. There is text in url, description"):
        open_dataset(folder, caption_column=name)


def test_no_caption_is_missed_where_there_is_no_text(folder: Path) -> None:
    write_as("parquet", folder, pa.table({"image": images(), "__key__": PATHS, "__url__": PATHS, "label": [1] * 7}))
    assert open_dataset(folder)[0].caption == ""


def test_the_json_of_a_webdataset_has_the_caption(folder: Path) -> None:
    document = {"re_caption": "a flower", "caption": "alt text", "width": 3}
    write_as("parquet", folder, pa.table({"jpg": images(), "json": [document, *[None] * 6], "__key__": PATHS}))
    assert [sample.caption for sample in open_dataset(folder)] == ["a flower", *[""] * 6]
    write_as("parquet", folder, pa.table({"jpg": images(), "json": [document] * 7, "txt": ["text"] * 7}))
    assert open_dataset(folder)[0].caption == "text"  # a column goes before a field


def test_what_an_index_says_is_not_passed_over_for_a_column(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    convert(str(source.path), str(tmp_path / "out"), num_proc=1, quiet=True)
    with pytest.raises(OptionError, match=r"caption_column \"text\": leave it out: the index of .* names the columns"):
        open_dataset(tmp_path / "out", caption_column="text")
    with pytest.raises(OptionError, match=r"image_column \"jpg\": leave it out: the index of .* names the columns"):
        open_dataset(tmp_path / "out", image_column="jpg")


@pytest.mark.parametrize("known", ["re_caption", "caption", "text", "txt", "prompt", "TEXT"])
def test_known_names_are_found_without_a_word(known: str, folder: Path) -> None:
    write_as("arrow", folder, pa.table({"image": images(), **UNKNOWN, known: ["it"] * 7}))
    assert open_dataset(folder)[6].caption == "it"


@UNCAPTIONED
def test_two_columns_of_one_name_are_none(folder: Path) -> None:
    content = pa.Table.from_arrays(
        [images(), pa.array(["x"] * 7), pa.array(["y"] * 7)], ["image", "caption", "caption"]
    )
    pq.write_table(content, folder / "a.parquet", **PLAIN)
    reader = open_dataset(folder)
    check(reader)
    assert reader[0].caption == ""


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_rows_without_a_name_are_numbered_through_all_files(form: str, folder: Path) -> None:
    """So that no two have one key."""
    content = pa.table({"image": pa.array(IMAGES, pa.binary()), "caption": ["c"] * 7})
    write_as(form, folder, content)
    (folder / f"b.{form}").write_bytes((folder / f"a.{form}").read_bytes())
    reader = open_dataset(folder)
    assert [sample.key for sample in reader] == [f"{number:09d}" for number in range(14)]
    assert [reader.find(sample.key).row for sample in reader] == list(range(14))
    assert reader.find("000000010").image == IMAGES[3]


@pytest.mark.parametrize("rows", [2, 3000])
def test_of_rows_with_one_key_the_last_is_found(rows: int, folder: Path) -> None:
    same = pa.table({"image": pa.array([IMAGES[0]] * rows, pa.binary()), "caption": ["c"] * rows, "key": ["k"] * rows})
    for name in ("a", "b"):
        pq.write_table(same, folder / f"{name}.parquet", **PLAIN)
    reader = open_dataset(folder)
    assert reader.find("k").row == 2 * rows - 1
    assert "k" in reader[rows:]


def test_an_image_that_is_only_named_is_not_there(folder: Path) -> None:
    """As ``datasets`` keeps those of a folder of images."""
    column = pa.array([{"bytes": None, "path": "/pictures/a.jpg"}] * 2, images().type)
    write_as("arrow", folder, pa.table({"image": column, "text": ["t"] * 2}))
    with pytest.raises(DamagedFileError, match=r"row 1: it has no image, only the path of a file: /pictures/a\.jpg"):
        open_dataset(folder)[1].image  # noqa: B018


def test_files_without_rows_hold_none(folder: Path) -> None:
    pq.write_table(table().slice(0, 0), folder / "a.parquet", **PLAIN)
    write_stream(folder / "b.arrow", table().slice(0, 0))
    assert len(open_dataset(folder)) == 0
    pq.write_table(table(), folder / "c.parquet", **PLAIN)
    check(open_dataset(folder))


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize(
    "column",
    [
        {"a": [1] * 7},
        {"image": ["x"] * 7},
        {"image": pa.array([{"bytes": "text"}] * 7)},
        {"image": pa.array([[{"bytes": b"x"}]] * 7)},
        {"image": pa.array([b"abcd"] * 7, pa.binary(4))},
    ],
)
def test_a_table_without_images_is_told_with_its_columns(column: dict[str, Any], form: str, folder: Path) -> None:
    content = pa.table(column)
    if form == "parquet":
        pq.write_table(content, folder / "a.parquet")
    else:
        write_stream(folder / "a.arrow", content)
    with pytest.raises(SourceError, match=rf"a\.{form} has no column of images\. Its columns: {next(iter(column))}"):
        open_dataset(folder)


def write_ipc_file(path: Path) -> None:
    with pa.ipc.new_file(path, table().schema) as writer:
        writer.write_table(table())


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (write_ipc_file, "is an Arrow IPC file. Give an Arrow IPC stream, or Parquet"),
        (lambda path: write_stream(path, table(), compression="zstd"), "has compressed buffers"),
        (lambda path: write_stream(path, table(), compression="lz4"), "has compressed buffers"),
        (
            lambda path: write_stream(path, pa.table({"image": pa.array(IMAGES, pa.binary_view())})),
            "type binary_view",
        ),
    ],
)
def test_arrow_that_cannot_be_pointed_into_says_why(write: Callable[[Path], None], words: str, folder: Path) -> None:
    write(folder / "a.arrow")
    with pytest.raises(SourceError, match=words):
        open_dataset(folder)


# The cache


def test_an_index_is_made_once_and_used_again(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(table(), folder / "a.parquet", **PLAIN)
    check(open_dataset(folder))
    (made,) = cache.iterdir()

    def refuse(*arguments: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(foreign, "_write_part", refuse)
    check(open_dataset(folder))
    check(open_dataset(os.path.relpath(folder)))
    assert list(cache.iterdir()) == [made]


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_another_file_in_its_place_gets_an_index_of_its_own(form: str, folder: Path) -> None:
    """Also one of the same size: an index of before would give wrong images."""

    def write(content: pa.Table) -> None:
        if form == "parquet":
            pq.write_table(content, folder / "a.parquet", **PLAIN)
        else:
            write_stream(folder / "a.arrow", content)

    write(table())
    before = open_dataset(folder)
    size = (folder / f"a.{form}").stat().st_size
    order = [1, 0, 2, 3, 4, 5, 6]
    write(table().take(order))
    os.utime(folder / f"a.{form}", ns=(10**18, 10**18))
    assert (folder / f"a.{form}").stat().st_size == size
    assert [sample.image for sample in open_dataset(folder)] == [IMAGES[number] for number in order]
    if form == "arrow":
        with pytest.raises(IndexMismatchError, match="modified since"):
            before[0].image  # noqa: B018


@pytest.mark.parametrize("named", ["~/mine", "mine"])
def test_a_cache_is_named_as_in_a_shell(
    named: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAION6M_CACHE", named)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    pq.write_table(table(), folder / "a.parquet", **PLAIN)
    data = pickle.dumps(open_dataset(folder))
    monkeypatch.chdir("/")
    check(pickle.loads(data))
    assert len(list((tmp_path / "mine").iterdir())) == 1


def test_a_cache_that_cannot_be_written_costs_only_the_next_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("LAION6M_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    pq.write_table(table(), folder / "a.parquet", **PLAIN)
    check(open_dataset(folder))
    assert list((tmp_path / "tmp").rglob("*.arrow"))


def test_a_failed_index_leaves_nothing_in_the_cache(folder: Path, cache: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), folder / "a.parquet")
    with pytest.raises(SourceError):
        open_dataset(folder)
    assert list(cache.iterdir()) == []


def test_moved_files_are_found_where_they_are(folder: Path, tmp_path: Path) -> None:
    pq.write_table(table(), folder / "a.parquet", **PLAIN)
    check(open_dataset(folder))
    folder.rename(tmp_path / "moved")
    check(open_dataset(tmp_path / "moved"))


# Damage


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "meta/index.arrow"])
def test_what_a_clone_without_git_lfs_leaves_is_known(name: str, folder: Path) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(POINTER)
    with pytest.raises(SourceError, match=rf"{name} is a Git LFS pointer, not the file\. Run git lfs pull in "):
        open_dataset(folder)


def test_so_is_a_shard_that_such_a_clone_left(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    convert(str(source.path), str(tmp_path / "out"), num_proc=1, quiet=True)
    [shard] = (tmp_path / "out" / "data").iterdir()
    shard.write_text(POINTER)
    with pytest.raises(IndexMismatchError, match=r"when it was indexed; it is a Git LFS pointer.*run git lfs pull"):
        open_dataset(tmp_path / "out")[0].image  # noqa: B018


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_link_to_nowhere_is_a_clear_error(name: str, folder: Path) -> None:
    (folder / name).symlink_to(folder / "nowhere")
    with pytest.raises(SourceError, match=f"{name}: No such file or directory"):
        open_dataset(folder)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize(
    "content", [b"", b"x", b"PAR1", b"PAR1PAR1", b"\xff" * 400, bytes(64) + b"\xff\xff\xff\x7fPAR1"]
)
def test_what_is_no_table_is_a_clear_error(name: str, content: bytes, folder: Path) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(Laion6mError, match=name):
        open_dataset(folder)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_file_cut_anywhere_is_an_error_or_the_right_rows(name: str, folder: Path) -> None:
    path = folder / name
    if name == "a.parquet":
        pq.write_table(table(), path, **PLAIN)
    else:
        write_stream(path, table())
    whole = path.read_bytes()
    errors = 0
    for keep in range(0, len(whole), len(whole) // 60):
        path.write_bytes(whole[:keep])
        try:
            reader = open_dataset(folder)
        except Laion6mError:
            errors += 1
        else:  # a stream that ends between two batches
            assert [sample.image for sample in reader] == IMAGES[: len(reader)]
            assert len(reader) < 7
    assert errors > 50


def test_a_columns_name_that_is_not_utf8_is_a_clear_error(folder: Path) -> None:
    table = pa.table({"image": pa.array([b"x"]), "ccccc": pa.array(["a"])})
    with pa.OSFile(str(folder / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    data = (folder / "a.arrow").read_bytes()
    (folder / "a.arrow").write_bytes(data.replace(b"ccccc", b"c\xffccc"))
    with pytest.raises(DamagedFileError, match=r"a\.arrow: Arrow"):
        open_dataset(folder)


def test_text_that_is_not_utf8_is_a_clear_error(folder: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 7, pa.array([b"\xff"] * 7, pa.binary()).buffers())
    pq.write_table(pa.table({"image": images(), "caption": bad}), folder / "a.parquet", **PLAIN)
    with pytest.raises(DamagedFileError, match=r"a\.parquet"):
        open_dataset(folder)
