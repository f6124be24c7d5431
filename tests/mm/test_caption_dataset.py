"""CaptionDataset against upstream's, written down here line by line from its description."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import sys
import traceback
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, UnidentifiedImageError

torch = pytest.importorskip("torch", reason="the training side needs torch")

from torch.utils.data import DataLoader  # noqa: E402

import builder.mm.loading  # noqa: E402
from builder.base.errors import Laion6mError, OptionError, SourceError  # noqa: E402
from builder.base.storage import Storage  # noqa: E402
from builder.curate.add_column import add_column  # noqa: E402
from builder.mm import CaptionDataset, normalize_pixels  # noqa: E402
from builder.mm.bucket_sampler import bucketed  # noqa: E402
from builder.mm.ceph import S3Client  # noqa: E402
from builder.mm.samples import parse_document  # noqa: E402
from builder.mm.skips import SampleError, TooManyBadSamplesError, problem_of  # noqa: E402
from builder.mm.tensors import from_array, to_array  # noqa: E402
from builder.read.opening import open_dataset  # noqa: E402
from tests.outputs import ALL  # noqa: E402

Options = dict[str, Any]
PHOTOS = Path(__file__).parents[2] / "../shared/corpus/photos"


def upstream_sample(entry: dict[str, str], image_folder: str, cap_folder: str, options: Options) -> Options:
    """One sample as upstream makes it: the oracle."""
    image = Image.open(os.path.join(image_folder, entry["image"]))
    assert image.width > options["min_image_size"]
    assert image.height > options["min_image_size"]
    assert image.width / image.height > 0.1
    assert image.width / image.height < 10
    image = image.convert("RGB")

    w, h = image.size
    if w > h:
        x0 = random.randint(0, w - h)
        image = image.crop((x0, 0, x0 + h, h))
    else:
        y0 = random.randint(0, h - w)
        image = image.crop((0, y0, w, y0 + w))
    image = image.resize((options["image_size"], options["image_size"]))
    pixels = torch.from_numpy(np.array(image)).float()
    pixels = pixels / 255
    pixels = 2 * pixels - 1
    data: Options = {"pixel_values": pixels.permute(2, 0, 1)}

    with open(os.path.join(cap_folder, entry["annotation"]), encoding="utf-8") as file:
        caption = json.load(file)[options["cap_source"]]
    template = options["prompt_template"]
    if random.uniform(0, 1) < options["unconditional"]:
        prompt = template["CFG"]
    else:
        prompt = template["GENERATION"].format(input=caption.strip())
    prompt = template["INSTRUCTION"].format(input=prompt)
    if template.get("IMG_START_TOKEN_FOR_GENERATION", True):
        prompt += template["IMG_START_TOKEN"]
    input_ids = options["tokenizer"].encode(prompt, return_tensors="pt", **options["tokenizer_kwargs"])[0]
    data["input_ids"] = input_ids[: options["max_length"]]

    data["image_dir"] = image_folder
    data["image_file"] = entry["image"]
    data["type"] = "text2image"
    return data


def assert_same(ours: Options, theirs: Options) -> None:
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        if isinstance(value, torch.Tensor):
            assert ours[key].dtype == value.dtype
            assert torch.equal(ours[key], value), key
        else:
            assert type(ours[key]) is type(value)
            assert ours[key] == value


@pytest.fixture
def options(letters: Any, template: Options) -> Options:
    return {
        "tokenizer": letters,
        "prompt_template": template,
        "tokenizer_kwargs": {"add_special_tokens": True},
        "cap_source": "re_caption",
        "image_size": 64,
        "min_image_size": 80,
        "max_length": 128,
        "unconditional": 0.3,
    }


def where(layout: str, files: Path, tars: Path, indexed: str) -> Options:
    root = tars if layout == "tars" else files
    data_path = indexed if layout == "index" else str(root / "data.json")
    return {"data_path": data_path, "image_folder": str(root / "raw"), "cap_folder": str(root / "captions")}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["files", "tars", "index"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"unconditional": 1.0},
        {"unconditional": 0.0, "max_length": 20},
        {"tokenizer_kwargs": {"add_special_tokens": False}},
        {"image_size": 151},
    ],
)
def test_samples_are_upstreams_to_the_bit(
    layout: str, change: Options, files: Path, tars: Path, indexed: str, options: Options
) -> None:
    options |= change
    place = where(layout, files, tars, indexed)
    dataset = CaptionDataset(**place, **options)
    entries = json.loads((files / "data.json").read_text())
    if layout == "index":
        entries.sort(
            key=lambda entry: entry["image"]
        )  # an index has its rows in the order in which they lie in the tars
    assert list(dataset.data_list) == entries
    for seed in range(3):
        random.seed(seed)
        ours = [dataset[i] for i in range(len(dataset))]
        after = random.random()
        random.seed(seed)
        for got, entry in zip(ours, entries, strict=True):
            expected = upstream_sample(entry, str(files / "raw"), str(files / "captions"), options)
            assert_same(got, {**expected, "image_dir": place["image_folder"]})
        assert random.random() == after


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photographs of the shared corpus are not here")
def test_real_photographs_are_upstreams_to_the_bit(tmp_path: Path, options: Options) -> None:
    """One in five of them, as each is scaled twice."""
    photos = sorted(path.name for path in PHOTOS.iterdir())[:: None if ALL else 5]
    (tmp_path / "caption.json").write_text('{"re_caption": "a photograph"}')
    entries = [{"image": name, "annotation": "caption.json"} for name in photos]
    (tmp_path / "data.json").write_text(json.dumps(entries))
    options |= {"image_size": 512, "min_image_size": 10}
    dataset = CaptionDataset(str(tmp_path / "data.json"), str(PHOTOS), cap_folder=str(tmp_path), **options)
    random.seed(11)
    ours = [dataset[i] for i in range(len(dataset))]
    random.seed(11)
    for got, entry in zip(ours, entries, strict=True):
        assert_same(got, upstream_sample(entry, str(PHOTOS), str(tmp_path), options))
    assert len(photos) > (100 if ALL else 20)


def test_pixels_have_the_range_and_shape_that_models_expect(indexed: str, options: Options) -> None:
    pixels = CaptionDataset(indexed, **options)[0]["pixel_values"]
    assert pixels.shape == (3, 64, 64)
    assert pixels.is_contiguous()
    assert pixels.min() >= -1
    assert pixels.max() <= 1


def test_debug_gives_the_first_sample_whatever_is_asked_for(indexed: str, options: Options) -> None:
    dataset = CaptionDataset(indexed, debug=True, **options)
    assert {dataset[i]["image_file"] for i in range(3)} == {dataset.data_list[0]["image"]}


def test_a_folder_of_lists_is_one_list(files: Path, tmp_path: Path, options: Options) -> None:
    entries = json.loads((files / "data.json").read_text())
    (tmp_path / "b.json").write_text(json.dumps(entries[:3]))
    (tmp_path / "a.json").write_text(json.dumps(entries[3:]))
    dataset = CaptionDataset(str(tmp_path), str(files / "raw"), cap_folder=str(files / "captions"), **options)
    assert list(dataset.data_list) == entries[3:] + entries[:3]


@pytest.mark.parametrize("layout", ["files", "tars"])
def test_a_source_without_an_index_brings_its_own_folders(
    layout: str, files: Path, tars: Path, options: Options
) -> None:
    root = files if layout == "files" else tars
    dataset = CaptionDataset(str(root), **options)
    assert dataset[0]["image_dir"] == str(root / "raw")
    assert dataset[0]["image_file"] == dataset.data_list[0]["image"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not JSON"),
        ('{"image": 1}', "not a list"),
        ("[1]", "not a list of objects"),
        ('[{"image": "a"', "not JSON"),
    ],
)
def test_a_broken_list_is_named(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(Laion6mError, match=f"list.json: {problem}"):
        CaptionDataset(str(tmp_path / "list.json"))


def test_a_list_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Laion6mError, match="No such file"):
        CaptionDataset(str(tmp_path / "list.json"))


def test_the_rows_of_an_index_look_like_data_json(files: Path, indexed: str) -> None:
    entries = sorted(json.loads((files / "data.json").read_text()), key=lambda entry: entry["image"])
    rows = CaptionDataset(indexed).data_list
    assert list(rows) == entries
    assert rows[-1] == entries[-1]
    assert rows[2:4] == entries[2:4]
    with pytest.raises(IndexError):
        rows[len(entries)]
    assert pickle.loads(pickle.dumps(rows[0]["image"])).row == 0


class Untouched:
    """Six million rows, of which none may be looked at."""

    def __len__(self) -> int:
        return 6_000_000


def test_six_million_rows_cost_nothing_to_begin_with(monkeypatch: pytest.MonkeyPatch, options: Options) -> None:
    monkeypatch.setattr(builder.mm.loading, "open_dataset", lambda path: Untouched())
    CaptionDataset("converted", **options)
    tracemalloc.start()
    dataset = CaptionDataset("converted", **options)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert len(dataset) == 6_000_000


def test_a_dataset_travels_to_another_process(files: Path, options: Options, template: Options) -> None:
    options["tokenizer"] = None
    dataset = CaptionDataset(str(files), **options)
    dataset._read_image(dataset.data_list[0]["image"])
    again = pickle.loads(pickle.dumps(dataset))
    assert again._read_json(again.data_list[1]["annotation"]) == dataset._read_json(dataset.data_list[1]["annotation"])


class Doubled(CaptionDataset):
    """As subclasses of upstream's class are written."""

    def __getitem__(self, idx: int) -> Options:
        data_sample = self.data_list[idx]
        image = self._read_image(data_sample["image"]).convert("RGB")
        data = self._process_image(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        data.update(self._process_text(self._read_json(data_sample["annotation"])[self.cap_source] * 2))
        data.update(image_dir=self.image_folder, image_file=data_sample["image"], type="text2image")
        return data


@pytest.mark.parametrize("layout", ["files", "tars", "index"])
def test_a_subclass_written_for_upstream_works(
    layout: str, files: Path, tars: Path, indexed: str, options: Options
) -> None:
    dataset = Doubled(**where(layout, files, tars, indexed), **{**options, "unconditional": 0, "max_length": 500})
    sample = next(sample for sample in map(dataset.__getitem__, range(8)) if "000004" in sample["image_file"])
    text = "".join(map(chr, sample["input_ids"].tolist()))
    assert text.count("picture number 4") == 2
    assert sample["image_file"] == "00000/000000004.jpg"


def test_paths_written_by_hand_are_found_too(indexed: str, options: Options) -> None:
    dataset = CaptionDataset(indexed, **options)
    assert dataset._read_image("./00001/000000003.png").size == (300, 200)
    assert dataset._read_json("00001/000000003.json")["re_caption"].strip().startswith("picture number 3")
    for path in ("00001/000000003.jpg", "00001/nowhere.png"):
        with pytest.raises(FileNotFoundError, match=path):
            dataset._read_image(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        dataset._read_json("nowhere.json")


def test_a_caption_under_the_other_name_is_found_in_an_index(indexed: str, options: Options) -> None:
    by_reader = CaptionDataset(indexed, **{**options, "cap_source": "caption"})
    assert by_reader._read_json("00001/000000003.json")["caption"].startswith("  picture number 3")
    with pytest.raises(SampleError, match="no field nothing"):
        CaptionDataset(indexed, **{**options, "cap_source": "nothing"})[0]


@pytest.fixture
def others(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images and captions of somebody else's; one caption is missing."""
    monkeypatch.setenv("LAION6M_CACHE", str(tmp_path / "cache"))
    images = [(files / "raw" / entry["image"]).read_bytes() for entry in json.loads((files / "data.json").read_text())]
    captions = [None if number == 2 else f"caption {number}" for number in range(len(images))]
    table = pa.table({"image": [{"bytes": image, "path": None} for image in images], "caption": captions})
    (tmp_path / "others" / "data").mkdir(parents=True)
    place = tmp_path / "others" / "data" / "train-00000-of-00001.parquet"
    pq.write_table(table, place, compression="none", use_dictionary=False)
    return tmp_path / "others"


def test_images_and_captions_of_others_need_no_annotations(
    others: Path, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    options |= {"unconditional": 0, "cap_source": "caption"}
    dataset = CaptionDataset(str(others), buckets=[(64, 64), (96, 48), (48, 96)], **options)
    for number in (0, 1, 3, 7):
        assert "caption " + str(number) in "".join(map(chr, dataset[number]["input_ids"].tolist()))
    with pytest.raises(SampleError, match=r"sample 2 .*neither an annotation nor a caption"):
        dataset[2]
    with pytest.raises(SampleError, match="no field text"):
        CaptionDataset(str(others), **{**options, "cap_source": "text"})[0]
    monkeypatch.setattr(pq, "ParquetFile", None)  # that there is no such column is not looked up for each sample
    dataset[4]


def test_what_datasets_writes_beside_its_data_is_no_list(others: Path, options: Options) -> None:
    for name in ("dataset_info.json", "dataset_infos.json"):
        (others / name).write_text("{}")
    assert len(CaptionDataset(str(others), **options)) == 8


# Precomputed latents and tokens


def save(folder: Path, image_file: str, tensor: Any) -> None:
    path = folder / f"{image_file}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensor, path)


def test_latents_and_tokens_take_the_images_place_in_upstreams_order(
    files: Path, tmp_path: Path, options: Options
) -> None:
    first = json.loads((files / "data.json").read_text())[0]["image"]
    latents = torch.arange(32, dtype=torch.bfloat16).reshape(2, 4, 4)
    save(tmp_path / "latents", first, latents)
    save(tmp_path / "tokens", first, torch.arange(9, dtype=torch.int32))
    place = {"data_path": str(files / "data.json"), "cap_folder": str(files / "captions"), "image_folder": None}
    sample = CaptionDataset(**place, image_latents_folder=str(tmp_path / "latents"), **options)[0]
    assert sample["image_latents"].dtype == torch.bfloat16
    assert torch.equal(sample["image_latents"], latents)
    assert "pixel_values" not in sample
    both = CaptionDataset(
        **place,
        image_latents_folder=str(tmp_path / "latents"),
        image_tokens_folder=str(tmp_path / "tokens"),
        **options,
    )[0]
    assert both["image_tokens"].dtype == torch.int64
    assert "image_latents" not in both


class Malicious:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("import sys; sys.laion6m_was_here = True",)


def test_a_latents_file_runs_no_code(files: Path, tmp_path: Path, options: Options) -> None:
    first = json.loads((files / "data.json").read_text())[0]["image"]
    dataset = CaptionDataset(str(files), image_latents_folder=str(tmp_path), **options)
    for content, problem in ((Malicious(), "Weights only load failed"), ({"a": torch.ones(1)}, "found dict")):
        save(tmp_path, first, content)
        with pytest.raises(SampleError, match=problem):
            dataset[0]
    assert not hasattr(sys, "laion6m_was_here")


# Errors


@pytest.fixture
def damaged(make_files: Any, tmp_path: Path) -> Path:
    root = make_files(tmp_path / "damaged", 8)
    entries = json.loads((root / "data.json").read_text())
    (root / "raw" / entries[1]["image"]).write_bytes((root / "raw" / entries[1]["image"]).read_bytes()[:500])
    Image.new("RGB", (80, 200)).save(root / "raw" / entries[2]["image"])
    Image.new("RGB", (1700, 100)).save(root / "raw" / entries[3]["image"])
    (root / "captions" / entries[4]["annotation"]).write_text('{"re_caption": 5}')
    (root / "captions" / entries[5]["annotation"]).unlink()
    (root / "captions" / entries[6]["annotation"]).write_text("{")
    return root


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        (1, "[Tt]runcated|broken|cannot identify the image's format"),
        (2, "80x200 pixels; both sides must be over 80"),
        (3, "1700x100 pixels; width / height must be between"),
        (4, "re_caption of .* is not a string"),
        (5, "neither a file below"),
        (6, r"\d+/\d+\.json is not JSON: Expecting property name"),
    ],
)
def test_an_error_names_the_sample(index: int, problem: str, damaged: Path, options: Options) -> None:
    dataset = CaptionDataset(str(damaged), **options)
    image = dataset.data_list[index]["image"]
    with pytest.raises(SampleError, match=rf"sample {index} \({image}\): .*({problem})") as caught:
        dataset[index]
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert caught.value.__cause__ is not None


def test_the_words_of_an_error_quote_paths_and_show_no_object() -> None:
    assert str(SampleError("my data", 3, "a b.jpg", "broken")) == "'my data': sample 3 ('a b.jpg'): broken"
    assert str(SampleError("data", 3, "", "broken")) == "data: sample 3 (no image path): broken"
    with pytest.raises(UnidentifiedImageError) as unknown:
        Image.open(io.BytesIO(b"GIF"))
    assert "<" not in problem_of(unknown.value)
    assert problem_of(KeyError("caption")) == "no field caption"
    assert problem_of(KeyError()) == "KeyError"
    for text in ("{", "[]"):
        with pytest.raises(ValueError, match=r"^'a b\.json' is "):
            parse_document(text, Path("a b.json"))  # type: ignore[arg-type]


def test_skipping_takes_the_next_good_sample_and_warns_once_for_each_kind(damaged: Path, options: Options) -> None:
    dataset = CaptionDataset(str(damaged), on_error="skip", **options)
    good = [dataset.data_list[i]["image"] for i in (0, 7)]
    with pytest.warns(UserWarning, match="skipped") as caught:
        assert dataset[1]["image_file"] == good[1]
    assert len(caught) == len({str(warning.message) for warning in caught}) == 6
    assert dataset.skips.counts["image_too_small"] == 1
    assert dataset[6]["image_file"] == good[1]
    assert sum(dataset.skips.counts.values()) == 7
    assert dataset.skips.tried == 9


def test_skipping_wraps_around_and_ends_where_nothing_is_good(damaged: Path, options: Options) -> None:
    dataset = CaptionDataset(str(damaged), on_error="skip", max_skip_ratio=1, **{**options, "min_image_size": 260})
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(TooManyBadSamplesError, match="8 of 8 samples") as caught,
    ):
        dataset[5]
    assert "image_too_small" in str(pickle.loads(pickle.dumps(caught.value)))


def test_skipping_more_than_the_share_allowed_is_an_error(damaged: Path, options: Options) -> None:
    dataset = CaptionDataset(str(damaged), on_error="skip", max_skip_ratio=0.5, **options)
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(TooManyBadSamplesError, match=r"more than max_skip_ratio=0\.5"),
    ):
        [dataset[1] for _ in range(20)]


def test_an_index_beyond_the_end_is_an_index_error(files: Path, options: Options) -> None:
    dataset = CaptionDataset(str(files), **options)
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    assert dataset[-len(dataset)]["image_file"] == dataset.data_list[0]["image"]
    with pytest.raises(IndexError):
        dataset[-len(dataset) - 1]
    assert sum(1 for _ in dataset) == len(dataset)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"GENERATION": "{caption}"}, "no field caption"),
        ({"INSTRUCTION": "{input} {"}, "Single '{'"),
        ({"INSTRUCTION": "{} {}"}, "index 0 out of range"),
    ],
)
def test_a_template_that_does_not_fit_is_not_taken_for_a_bad_sample(
    change: dict[str, str], problem: str, files: Path, options: Options, template: Options
) -> None:
    options |= {"prompt_template": {**template, **change}, "unconditional": 0}
    with pytest.raises(OptionError, match=f"prompt_template.*{problem}"):
        CaptionDataset(str(files), on_error="skip", **options)[0]
    del template["INSTRUCTION"]
    with pytest.raises(OptionError, match=r"prompt_template.*no field INSTRUCTION"):
        CaptionDataset(str(files), on_error="skip", **{**options, "prompt_template": template})[0]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("on_error", "ignore"),
        ("imdecode_backend", "turbo"),
        ("out", "float16"),
        ("max_skip_ratio", 2),
        ("buckets", [(0, 1)]),
        ("image_size", "512"),
        ("image_size", 0),
        ("min_image_size", "80"),
        ("max_length", "128"),
        ("unconditional", "0.1"),
        ("max_skip_ratio", "0.05"),
    ],
)
def test_options_out_of_range_are_refused(option: str, value: Any, files: Path) -> None:
    with pytest.raises(OptionError, match=option):
        CaptionDataset(str(files), **{option: value})


def test_a_config_without_a_type_is_refused(files: Path) -> None:
    with pytest.raises(OptionError, match=r"type: .*this one has padding_side"):
        CaptionDataset(str(files), tokenizer={"padding_side": "right"})


def test_a_missing_configuration_is_not_taken_for_a_bad_sample(files: Path, options: Options) -> None:
    dataset = CaptionDataset(str(files / "data.json"), on_error="skip", **options)
    with pytest.raises(OptionError, match="ceph_folder"):
        dataset[0]
    dataset = CaptionDataset(str(files / "data.json"), ceph_folder="s3://a", on_error="skip", **options)
    with pytest.raises(OptionError, match=r"^ceph_config: give"):
        dataset[0]
    dataset = CaptionDataset(str(files / "data.json"), ceph_folder="s3://a", ceph_config="no.conf", **options)
    with pytest.raises(OptionError, match=r'^ceph_config "no\.conf": there is no such file'):
        dataset[0]


def test_an_error_in_a_loaders_worker_says_all_it_says(damaged: Path, options: Options) -> None:
    dataset = CaptionDataset(str(damaged), **options)
    batches: Any = iter(DataLoader(dataset, sampler=[2], num_workers=1, multiprocessing_context="fork"))
    with pytest.raises(SampleError, match=r"(?s)worker process 0.*sample 2 \(.*80x200 pixels") as caught:
        next(batches)
    assert "exception str() failed" not in "".join(traceback.format_exception(caught.value))
    batches._shutdown_workers()  # the garbage collector would wait 5 seconds for the worker


@pytest.mark.slow
@pytest.mark.parametrize("text", ["[1, 2]", "5", "null", '[["re_caption", "a"]]', '"re_caption"'])
def test_an_annotation_that_is_no_object_is_a_bad_sample(
    text: str, make_files: Any, tmp_path: Path, options: Options
) -> None:
    root = make_files(tmp_path / "source", 3)
    dataset = CaptionDataset(str(root), **options)
    (root / "captions" / dataset.data_list[0]["annotation"]).write_text(text)
    with pytest.raises(SampleError, match=r"sample 0 .*is .*, not a JSON object"):
        dataset[0]
    dataset.on_error = "skip"
    with pytest.warns(UserWarning, match="skipped"):
        assert dataset[0]["image_file"] == dataset.data_list[1]["image"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["image", "annotation"])
@pytest.mark.parametrize("value", [None, 5, ["a"]])
def test_an_entry_whose_path_is_no_string_is_a_bad_sample(
    name: str, value: Any, files: Path, tmp_path: Path, options: Options
) -> None:
    entries = json.loads((files / "data.json").read_text())
    entries[0][name] = value
    (tmp_path / "data.json").write_text(json.dumps(entries))
    place = {"image_folder": str(files / "raw"), "cap_folder": str(files / "captions")}
    dataset = CaptionDataset(str(tmp_path / "data.json"), **place, **options)
    with pytest.raises(SampleError, match=f"sample 0 .*{name} is .*, not a path"):
        dataset[0]
    dataset.on_error = "skip"
    with pytest.warns(UserWarning, match="skipped"):
        assert dataset[0]["image_file"] == entries[1]["image"]


class Picky(CaptionDataset):
    """Finds fault with the images named."""

    bad: tuple[str, ...] = ()

    def _read_image(self, image_file: str) -> Any:
        if image_file in self.bad:
            raise ValueError("it is named")
        return super()._read_image(image_file)


def test_with_buckets_a_bad_sample_is_replaced_by_the_next_of_its_bucket(indexed: str, options: Options) -> None:
    buckets = [(64, 64), (96, 48), (48, 96)]
    dataset = Picky(indexed, buckets=buckets, on_error="skip", max_skip_ratio=1, **options)
    numbers = dataset.buckets.of_all(dataset.widths(), dataset.heights()).tolist()
    assert any(numbers[row] != numbers[(row + 1) % 8] for row in range(8))
    for row in range(8):
        same = [other % 8 for other in range(row + 1, row + 9) if numbers[other % 8] == numbers[row]]
        dataset.bad = (str(dataset.data_list[row]["image"]),)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if len(same) > 1:
                assert dataset[row]["image_file"] == dataset.data_list[same[0]]["image"]
            else:
                with pytest.raises(TooManyBadSamplesError):
                    dataset[row]


def test_no_connection_to_object_storage_is_a_bad_sample(
    files: Path, tmp_path: Path, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    exceptions = pytest.importorskip("botocore.exceptions")

    class Nowhere:
        def cat_file(self, path: str) -> bytes:
            raise exceptions.EndpointConnectionError(endpoint_url="http://nowhere")

    config = tmp_path / "petrel.conf"
    config.write_text("[ours]\nendpoint = http://nowhere\n")
    client = S3Client(config)
    monkeypatch.setattr(Storage, "system", lambda storage, url: (Nowhere(), ""))
    monkeypatch.setattr("builder.base.storage._PAUSE", 0)
    with pytest.raises(SourceError, match=r"petrel\.conf: s3://a/b\.jpg: .*Could not connect"):
        client.get("s3://a/b.jpg")
    dataset = CaptionDataset(str(files / "data.json"), ceph_folder="s3://a", ceph_config=str(config), **options)
    dataset.FILE_CLIENT = client
    with pytest.raises(SampleError, match="Could not connect"):
        dataset[0]


class Copied(CaptionDataset):
    """With what upstream's subclasses copy from it."""

    def __getitem__(self, idx: int) -> Options:
        try:
            return self._load(self.data_list[idx])
        except Exception:  # noqa: BLE001
            return self._retry()


def test_an_error_that_a_subclass_hands_to_retry_is_a_sample_error(damaged: Path, options: Options) -> None:
    dataset = Copied(str(damaged), **options)
    with pytest.raises(SampleError, match="a sample: 80x200 pixels; both sides must be over 80") as caught:
        dataset[2]
    assert "80x200" in str(pickle.loads(pickle.dumps(caught.value)))
    dataset.prompt_template = None  # a mistake in the program stays one
    with pytest.raises(TypeError, match="tokenizer and prompt_template"):
        dataset[0]


def test_a_subclass_that_skips_gets_another_sample_from_retry(damaged: Path, options: Options) -> None:
    dataset = Copied(str(damaged), on_error="skip", max_skip_ratio=0, **options)
    good = [dataset.data_list[i] for i in (0, 7)]
    bad = list(dataset.data_list[1:7])
    dataset.data_list = [*bad, *good * 20]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        shown = [dataset[i % 6]["image_file"] for i in range(60)]
    assert set(shown) == {entry["image"] for entry in good}
    assert len(caught) == len(dataset.skips.counts)
    assert dataset.skips.counts["image_too_small"] >= 10


def test_a_subclass_finds_an_end_where_nothing_is_good(damaged: Path, options: Options) -> None:
    dataset = Copied(str(damaged), on_error="skip", **{**options, "min_image_size": 260})
    last = "both sides must be over 260|Truncated File Read"  # the samples come in no order; two of them are damaged
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(SampleError, match=last):
        dataset[0]
    assert sum(dataset.skips.counts.values()) == 20


def test_retry_refuses_buckets_and_passes_wrong_configurations_on(files: Path, damaged: Path, options: Options) -> None:
    dataset = Copied(str(damaged), buckets=[(64, 64), (96, 48)], on_error="skip", **options)
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(OptionError, match=r"buckets.*_retry\(\)"):
        dataset[2]
    nowhere = Copied(str(files / "data.json"), on_error="skip", **options)
    with pytest.raises(OptionError, match="ceph_folder"):
        nowhere[0]


def test_retry_without_an_error_is_another_sample(files: Path, options: Options) -> None:
    dataset = CaptionDataset(str(files), **options)
    random.seed(1)
    assert len({dataset._retry()["image_file"] for _ in range(20)}) > 1


class Elsewhere(CaptionDataset):
    """Its folders are known only later."""

    def __init__(self, root: Path, **options: Any) -> None:
        super().__init__(str(root / "data.json"), **options)
        self.image_folder = str(root / "raw")
        self.cap_folder = str(root / "captions")


def test_folders_may_be_named_after_the_dataset_was_made(files: Path, tars: Path, options: Options) -> None:
    for root in (files, tars):
        dataset = Elsewhere(root, **options)
        assert dataset[0]["image_dir"] == str(root / "raw")
    dataset.image_folder = str(files / "nowhere")
    with pytest.raises(SampleError, match="nowhere"):
        dataset[0]


def test_a_client_that_a_subclass_makes_is_asked(files: Path, tmp_path: Path, options: Options) -> None:
    class Client:
        def get(self, url: str) -> bytes | None:
            folder = {"jpg": "raw", "png": "raw", "json": "captions"}[url.rpartition(".")[2]]
            path = files / folder / url.removeprefix("s3://bucket/")
            return path.read_bytes() if path.exists() else None

    config = tmp_path / "petrel.conf"
    dataset = CaptionDataset(str(files / "data.json"), ceph_folder="s3://bucket", ceph_config=str(config), **options)
    assert dataset.FILE_CLIENT is None
    assert dataset.use_ceph is False
    config.write_text("[ours]\nendpoint = http://nowhere\n")
    dataset = CaptionDataset(str(files / "data.json"), ceph_folder="s3://bucket", ceph_config=str(config), **options)
    assert dataset.use_ceph is True
    dataset.FILE_CLIENT = Client()
    plain = CaptionDataset(str(files), **options)
    assert torch.equal(dataset[1]["pixel_values"], plain[1]["pixel_values"])
    dataset.data_list[1] = {"image": "nowhere.jpg", "annotation": "nowhere.json"}
    with pytest.raises(SampleError, match=r"s3://bucket/nowhere\.jpg is not there"):
        dataset[1]


class Plain(CaptionDataset):
    """Upstream's own ``__getitem__``, as subclasses copy it."""

    def __getitem__(self, idx: int) -> Options:
        image = self._read_image(self.data_list[idx]["image"]).convert("RGB")
        return self._process_image(image)


def test_a_subclass_that_converts_images_works_with_opencv_too(indexed: str, options: Options) -> None:
    pytest.importorskip("cv2")
    options |= {"imdecode_backend": "cv2", "buckets": [(64, 64), (96, 48), (48, 96)], "unconditional": 0}
    for row in range(8):
        random.seed(row)
        expected = CaptionDataset(indexed, **options)[row]["pixel_values"]
        random.seed(row)
        assert torch.equal(Plain(indexed, **options)[row]["pixel_values"], expected)


class Listed(CaptionDataset):
    """A list of its own, as upstream's subclasses make one."""

    def _load_data(self, data_path: str) -> None:
        self.data_list = json.loads(Path(data_path).read_text())[:2]


def test_a_subclass_may_set_nothing_but_data_list(files: Path, options: Options) -> None:
    dataset = Listed(**where("files", files, files, ""), **options)
    assert [sample["image_file"] for sample in dataset] == [entry["image"] for entry in dataset.data_list]
    with pytest.raises(OptionError, match="laion6m index"):
        dataset.widths()


class Filtered(CaptionDataset):
    """Some of an index's rows, in another order, one of them written by hand."""

    def _load_data(self, data_path: str) -> None:
        super()._load_data(data_path)
        rows = [dict(self.data_list[row]) for row in (6, 1, 3, 4)]
        rows[2] = {name: str(path) for name, path in rows[2].items()}
        self.data_list = rows


def test_sizes_are_of_the_rows_that_a_subclass_leaves(indexed: str, options: Options) -> None:
    whole, some = (
        kind(indexed, buckets=[(64, 64), (96, 48), (48, 96)], **options) for kind in (CaptionDataset, Filtered)
    )
    assert some.widths().tolist() == whole.widths()[[6, 1, 3, 4]].tolist()
    assert some.heights().tolist() == whole.heights()[[6, 1, 3, 4]].tolist()
    for row, number in enumerate(bucketed(some)[1].tolist()):
        width, height = some.buckets.sizes[number]
        assert some[row]["pixel_values"].shape == (3, height, width)
    some.data_list[0] = {"image": "nowhere.jpg", "annotation": "nowhere.json"}
    with pytest.raises(OptionError, match=r"data_list.*nowhere\.jpg"):
        some.widths()


# Fast ways


def test_uint8_normalised_later_is_the_same_to_the_bit(indexed: str, options: Options) -> None:
    samples = []
    for out in ("float32", "uint8"):
        random.seed(1)
        samples.append(CaptionDataset(indexed, out=out, **options)[3]["pixel_values"])
    assert samples[1].dtype == torch.uint8
    assert samples[1].shape == samples[0].shape
    assert torch.equal(normalize_pixels(samples[1]), samples[0])


def test_every_value_of_a_byte_is_normalised_as_upstream_does() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(normalize_pixels(values), 2 * (values.float() / 255) - 1)
    assert normalize_pixels(values, torch.bfloat16).dtype == torch.bfloat16


def test_opencv_shows_nearly_the_same(indexed: str, options: Options) -> None:
    pytest.importorskip("cv2")
    pixels = []
    for backend in ("pillow", "cv2"):
        random.seed(1)
        dataset = CaptionDataset(indexed, imdecode_backend=backend, **{**options, "image_size": 100})
        pixels.append(torch.stack([dataset[i]["pixel_values"] for i in range(len(dataset))]))
    assert pixels[0].shape == pixels[1].shape
    assert (pixels[0] - pixels[1]).abs().mean() < 0.06


@pytest.mark.parametrize("backend", ["pillow", "cv2"])
def test_buckets_decide_the_shape_of_each_sample(backend: str, indexed: str, options: Options) -> None:
    if backend == "cv2":
        pytest.importorskip("cv2")
    sizes = [(64, 64), (96, 48), (48, 96)]
    dataset = CaptionDataset(indexed, buckets=sizes, imdecode_backend=backend, **options)
    numbers = dataset.buckets.of_all(dataset.widths(), dataset.heights())
    for i, number in enumerate(numbers.tolist()):
        width, height = dataset.buckets.sizes[number]
        assert dataset[i]["pixel_values"].shape == (3, height, width)
    assert len(set(numbers.tolist())) > 1


def test_buckets_over_a_list_ask_for_an_index(files: Path) -> None:
    with pytest.raises(OptionError, match="laion6m index"):
        CaptionDataset(str(files), buckets=True).widths()


def test_a_column_of_latents_takes_the_images_place(indexed: str, tmp_path: Path, options: Options) -> None:
    copy = str(tmp_path / "copy")
    shutil.copytree(indexed, copy)
    for number, sample in enumerate(open_dataset(copy)):
        save(tmp_path / "latents", sample.path, torch.full((4, 2, 2), number, dtype=torch.bfloat16))
    add_column(copy, "dc32", str(tmp_path / "latents"), num_proc=1, quiet=True)
    dataset = CaptionDataset(copy, image_latents="dc32", **options)
    from_files = CaptionDataset(copy, image_latents_folder=str(tmp_path / "latents"), **options)
    for number in range(len(dataset)):
        random.seed(number)
        sample = dataset[number]
        random.seed(number)
        assert_same(sample, from_files[number])
        assert sample["image_latents"].float().unique().tolist() == [number]


def test_a_column_needs_an_index_and_to_be_there(files: Path, indexed: str) -> None:
    with pytest.raises(OptionError, match="laion6m index"):
        CaptionDataset(str(files), image_latents="dc32")
    with pytest.raises(Laion6mError, match="no column dc32"):
        CaptionDataset(indexed, image_latents="dc32")
    with pytest.raises(Laion6mError, match="no column dc32"):
        CaptionDataset(f"file://{indexed}", image_latents="dc32")


@pytest.mark.parametrize("tensor", [torch.zeros(0, 3), torch.tensor(4), torch.ones(2, 3).t(), torch.tensor([True])])
def test_tensors_survive_as_bytes(tensor: Any) -> None:
    again = from_array(to_array(tensor))
    assert again.dtype == tensor.dtype
    assert torch.equal(again, tensor)


@pytest.mark.parametrize("kind", [SampleError, TooManyBadSamplesError])
def test_an_error_made_of_a_message_alone_says_that_message(kind: Any) -> None:
    """As torch's loader makes them of what a worker raised."""
    assert str(kind("Caught it in a worker.")) == "Caught it in a worker."
