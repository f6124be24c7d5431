"""Reader.to_datasets: a map-style dataset whose images are read when they are looked at."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what datasets imports may be deprecated
    import datasets

    import builder.hf.builder
import builder
from builder import index, open_dataset
from builder.base.options import ConvertOptions, SamplePolicy
from builder.conversion.convert import convert
from tests.sources import Source, make_source


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return make_source(tmp_path_factory.mktemp("card") / "source")


def _readers() -> dict[str, Any]:
    from builder.hf import rows as hf_rows

    return hf_rows._READERS


def _folder() -> str:
    """Of the rows that this module's fixture made."""
    return next(place for place in _readers() if "it's" in place and "://" not in place).rpartition("@")[0]


@pytest.fixture(scope="module")
def rows(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("converted") / "out it's #1"
    convert(str(source.path), str(out), num_proc=1, quiet=True)
    return open_dataset(out).to_datasets()


def test_a_reader_becomes_a_dataset_with_images(rows: Any, source: Source) -> None:
    assert rows["key"][:] == list(source.rows)
    assert rows["caption"][:] == [row.caption for row in source.rows.values()]
    assert rows.features["image"] == datasets.Image()
    assert [row["image"].size for row in rows] == list(zip(rows["width"], rows["height"], strict=True))
    assert rows.cache_files == []


def test_it_can_be_pickled(rows: Any) -> None:
    assert pickle.loads(pickle.dumps(rows))[3]["image"].size == rows[3]["image"].size


def test_the_same_folder_has_the_same_fingerprint(rows: Any) -> None:
    folder = _folder()
    assert open_dataset(folder).to_datasets()._fingerprint == rows._fingerprint


def test_what_stands_where_it_was_made_is_not_taken_for_it(source: Source, tmp_path: Path) -> None:
    """Row 5 of another conversion is another image."""
    out = tmp_path / "out"
    convert(str(source.path), str(out), num_proc=1, quiet=True)
    before = pickle.dumps(open_dataset(out).to_datasets())
    first = open_dataset(out)[0].image
    shutil.rmtree(out)
    convert(
        str(source.path), str(out), ConvertOptions(policy=SamplePolicy(max_aspect_ratio=1.2)), num_proc=1, quiet=True
    )
    after = open_dataset(out).to_datasets()
    assert len(after) < 24
    _readers().clear()
    with pytest.raises(Exception, match="holds other files now"):
        _ = pickle.loads(before)[0]
    assert after[0]["image"].size
    assert first


@pytest.mark.slow
def test_a_process_that_imports_nothing_of_ours_reads_it(rows: Any, tmp_path: Path) -> None:
    (tmp_path / "rows.pkl").write_bytes(pickle.dumps(rows))
    code = f"import pickle; print(pickle.load(open({str(tmp_path / 'rows.pkl')!r}, 'rb'))[3]['image'].size)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == f"{rows[3]['image'].size}\n", done.stderr


def test_rows_without_an_image_have_none(tmp_path: Path) -> None:
    picture = pa.array([None, b"not decoded"], pa.binary())
    pq.write_table(pa.table({"image": picture}), tmp_path / "a.parquet", compression="none", use_dictionary=False)
    assert open_dataset(tmp_path).to_datasets()[0]["image"] is None


@pytest.mark.parametrize("named", ["image_column", "caption_column"])
def test_rows_of_named_columns_are_never_those_of_others(
    named: str, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process opens the folder without the names."""
    monkeypatch.setenv("LAION6M_CACHE", str(tmp_path / "cache"))
    (tmp_path / "out").mkdir()
    first, second = [row.image for row in source.rows.values()][:2]
    columns = {"image": pa.array([first]), "jpg": pa.array([second]), "caption": ["one"], "other": ["another"]}
    pq.write_table(pa.table(columns), tmp_path / "out" / "a.parquet", compression="none", use_dictionary=False)
    reader = open_dataset(tmp_path / "out", **{named: "jpg" if named == "image_column" else "other"})
    dataset = reader.to_datasets()
    there = dataset[0]
    assert there["caption"] == ("one" if named == "image_column" else "another")
    assert there["image"].size == (reader[0].width, reader[0].height)
    monkeypatch.setattr("builder.hf.rows._READERS", {})
    if named == "caption_column":
        assert dataset[0]["image"].tobytes() == there["image"].tobytes()
    else:
        with pytest.raises(Exception, match="was opened with image_column"):
            _ = dataset[0]


def test_it_can_be_filtered_shuffled_selected_and_mapped(rows: Any, source: Source) -> None:
    wide = rows.filter(lambda row: row["width"] > row["height"], keep_in_memory=True)
    chosen = wide.shuffle(seed=3).select(range(5))
    assert all(row["image"].size == (row["width"], row["height"]) for row in chosen)
    longer = rows.map(lambda row: {"letters": len(row["caption"])}, keep_in_memory=True)
    assert longer["letters"][:] == [len(row.caption) for row in source.rows.values()]
    assert longer[2]["image"].size == rows[2]["image"].size
    assert all(image["bytes"] is None for image in longer.data["image"].to_pylist())  # only addresses are kept
    smaller = rows.map(lambda row: {"image": row["image"].resize((8, 8))}, keep_in_memory=True)
    assert {row["image"].size for row in smaller} == {(8, 8)}


def test_a_view_is_a_dataset_of_its_rows(rows: Any) -> None:
    view = open_dataset(_folder())[20:2:-3].to_datasets()
    assert [row["key"] for row in view] == [rows[number]["key"] for number in range(20, 2, -3)]
    assert [row["image"].tobytes() for row in view] == [rows[number]["image"].tobytes() for number in range(20, 2, -3)]
    assert view._fingerprint != rows._fingerprint


def test_transforms_and_formats_see_images(rows: Any) -> None:
    seen = rows.with_transform(lambda batch: {"side": [image.size[0] for image in batch["image"]]})
    assert seen[:3] == {"side": rows[:3]["width"]}
    assert rows.with_format("numpy")[0]["image"].shape[:2] == (rows[0]["height"], rows[0]["width"])


def test_filtering_on_columns_reads_no_image(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.hf.rows.Reader.__getitem__", lambda *_: pytest.fail("an image was read"))
    chosen = rows.filter(lambda width: width > 0, input_columns="width", keep_in_memory=True)
    assert len(chosen) == len(rows)


def test_bytes_can_be_embedded_for_others(rows: Any, source: Source) -> None:
    from datasets.table import embed_table_storage

    table = embed_table_storage(rows.data.table.slice(0, 5).combine_chunks())
    assert [image["bytes"] for image in table["image"].to_pylist()] == [row.image for row in source.rows.values()][:5]
    names = [path.rpartition("/")[2] for path in rows["path"][:5]]
    assert [image["path"] for image in table["image"].to_pylist()] == names  # and nothing of this machine


def test_another_process_opens_the_folder_itself(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.hf.rows._READERS", {})
    assert rows[4]["image"].size == (rows[4]["width"], rows[4]["height"])


def test_a_folder_that_is_gone_is_named(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.hf.rows._READERS", {})
    monkeypatch.setattr("builder.hf.rows.os.path.isdir", lambda _: False)
    with pytest.raises(Exception, match=r"no dataset is open at .*out it's #1"):
        rows[4]


def test_a_dataset_behind_a_url_serves_as_well(rows: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAION6M_CACHE", str(tmp_path))
    folder = _folder()
    fsspec.filesystem("memory").put(folder, "/hf-rows", recursive=True)
    remote = open_dataset("memory://hf-rows").to_datasets()
    monkeypatch.setattr("builder.hf.rows._READERS", {})
    assert remote[4]["image"].tobytes() == rows[4]["image"].tobytes()


def test_what_only_its_opener_knows_is_not_left_out_by_another_process(
    rows: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LAION6M_CACHE", str(tmp_path))
    folder = _folder()
    fsspec.filesystem("memory").put(folder, "/hf-rows-with-options", recursive=True)
    options = {"use_listings_cache": False}
    remote = open_dataset("memory://hf-rows-with-options", storage_options=options).to_datasets()
    assert remote[4]["image"].tobytes() == rows[4]["image"].tobytes()
    monkeypatch.setattr("builder.hf.rows._READERS", {})
    with pytest.raises(Exception, match="Call to_datasets"):
        _ = remote[4]


def test_an_index_of_tars_serves_as_well(source: Source, tmp_path: Path) -> None:
    index(str(source.path), str(tmp_path / "index"), num_proc=1, quiet=True)
    rows = open_dataset(tmp_path / "index").to_datasets()
    assert [row["key"] for row in rows if row["image"].size == (row["width"], row["height"])] == list(source.rows)


def test_addresses_keep_the_contract_of_a_file_system(rows: Any, source: Source) -> None:
    files = fsspec.filesystem("laion6m")
    address = rows.data["image"].to_pylist()[3]["path"]
    image = list(source.rows.values())[3].image
    path = files._strip_protocol(address)
    for each in (files, pickle.loads(pickle.dumps(files))):
        assert each.cat_file(address) == image
        assert each.info(address) == {"name": path, "size": len(image), "type": "file"}
        assert (each.size(address), each.cat_file(address, -4, -1)) == (len(image), image[-4:-1])
        assert each.read_block(address, 2, 5) == image[2:7]
    place, _, rest = path.partition("#")
    row, _, name = rest.partition("/")
    assert files.ls(f"{place}#{row}", detail=False) == [path]
    assert files.find(place) == sorted(files._strip_protocol(each["path"]) for each in rows.data["image"].to_pylist())
    assert place in files.ls("", detail=False)
    for wrong in (f"{place}#{row}/other.jpg", f"{place}#{len(rows)}/{name}", f"{place}#x/{name}", "nowhere#1/a.jpg"):
        for use in (files.info, files.open, files.cat_file, files.ls):
            with pytest.raises(FileNotFoundError):
                use(f"laion6m://{wrong}")
        assert not files.exists(wrong)


def test_sizes_of_addresses_are_known_without_reading_an_image(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = [each["path"] for each in rows.data["image"].to_pylist()]
    expected = [len(fsspec.filesystem("laion6m").cat_file(address)) for address in addresses]
    monkeypatch.setattr("builder.hf.rows.FileSystem._bytes", lambda *_: pytest.fail("an image was read"))
    assert [fsspec.filesystem("laion6m").size(address) for address in addresses] == expected


@pytest.mark.parametrize("name", ["load_dataset", "load_dataset_builder"])
def test_a_token_with_a_newline_is_cleaned(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(datasets, name, lambda *_, **options: given.update(options))
    getattr(builder, name)("imagefolder", token=" hf_secret\n")
    assert given == {"token": "hf_secret"}
    getattr(builder, name)("imagefolder", token=True)
    assert given == {"token": True}
