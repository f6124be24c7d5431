"""The page on training: its configs are built and its code is run, as they stand there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the training side needs torch")
pytest.importorskip("mmengine", reason="the page's configs are mmengine's")

from torch.utils.data import ConcatDataset, DataLoader  # noqa: E402

import builder.mm  # noqa: E402
from builder import add_column, open_dataset  # noqa: E402
from builder.mm import CaptionDataset, InfiniteSampler, collate_func_gen  # noqa: E402
from builder.mm.engine import mmengine  # noqa: E402

Options = dict[str, Any]

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
BLOCKS = [
    block for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE) if "from src." not in block
]


def block(word: str) -> str:
    """The one block of Python on the page in which ``word`` stands."""
    found = [text for text in BLOCKS if word in text]
    assert len(found) == 1, (word, len(found))
    return found[0]


def values(text: str, **names: Any) -> Options:
    """What a block assigns. Its ``…`` are the options that every dataset here needs."""
    room: Options = {**vars(builder.mm), "ConcatDataset": ConcatDataset, **names}
    exec(text.replace(", …)", ", **common)"), room)  # noqa: S102  (of this repository's own page)
    return room


@pytest.fixture
def common(indexed: str, letters: Any, template: Options) -> Options:
    options: Options = {
        "tokenizer": letters,
        "prompt_template": template,
        "tokenizer_kwargs": {"add_special_tokens": True},
    }
    return {**options, "data_path": indexed, "image_size": 64, "min_image_size": 80}


def built(config: Options) -> Any:
    return mmengine("registry").DATASETS.build(config)


def sampler_of(config: Options, dataset: Any) -> Any:
    return mmengine("registry").DATA_SAMPLERS.build(config, default_args={"dataset": dataset, "seed": 0})


def test_a_config_by_strings_gives_batches(common: Options) -> None:
    page = values(block("custom_imports"), common=common)
    dataset = built(page["dataset"])
    name = page["collate_fn"].pop("type")
    function = mmengine("registry").FUNCTIONS.get(name)
    sampler = sampler_of(page["sampler"], dataset)
    loader = DataLoader(dataset, 4, sampler=sampler, collate_fn=lambda rows: function(rows, **page["collate_fn"]))
    batch = next(iter(loader))
    assert batch["data"]["pixel_values"].shape == (4, 3, 64, 64)


def test_the_names_that_the_page_lists_are_registered() -> None:
    text = PAGE.partition("These names are registered with mmengine:")[2].partition("\nxtuner's")[0]
    names = re.findall(r"`(\w+)`", text)
    registry = mmengine("registry")
    kinds = (registry.DATASETS, registry.DATA_SAMPLERS, registry.FUNCTIONS, registry.HOOKS)
    assert len(names) == 11
    assert [name for name in names if not any(kind.get(name) for kind in kinds)] == []


def test_the_collate_function_of_concatenations_is_made_by_name(common: Options) -> None:
    page = values(block("type='CollateConcat'"))["collate_fn"]
    dataset = CaptionDataset(**common)
    make = mmengine("registry").FUNCTIONS.get(page.pop("type"))
    assert make(**page)([dataset[0], dataset[1]])["data"]["text2image"]["pixel_values"].shape == (2, 3, 64, 64)


@pytest.mark.parametrize("word", ["SamplerStateHook      #", pytest.param("window=16384", marks=pytest.mark.slow)])
def test_a_sampler_shows_every_row_once(word: str, common: Options) -> None:
    dataset = CaptionDataset(**common)
    sampler = sampler_of(values(block(word))["sampler"], dataset)
    rows = iter(sampler)
    assert sorted(next(rows) for _ in range(len(dataset))) == list(range(len(dataset)))


def test_a_state_goes_on_with_the_next_rows(common: Options) -> None:
    rows = list(range(100))
    sampler = InfiniteSampler(rows, seed=0)
    every = [row for row, _ in zip(sampler, range(100), strict=False)]
    room = values(block("batches_trained_on"), sampler=sampler, batches_trained_on=6, batch_size=8)
    again = iter(room["sampler"])
    assert [next(again) for _ in range(52)] == every[48:]


def test_a_mixture_draws_from_three_datasets(common: Options) -> None:
    part = CaptionDataset(**common)
    page = values(
        block("type=MixtureSampler")
        .replace("dict(type=ConcatDataset, datasets=", "ConcatDataset(")
        .replace("redcaps5m", "laion6m")
        .replace("megalith10m", "laion6m"),
        laion6m=part,
    )
    sampler = sampler_of(page["sampler"], page["dataset"])
    drawn = [row // len(part) for row, _ in zip(sampler, range(900), strict=False)]
    assert [round(drawn.count(number) / 100) for number in range(3)] == [6, 2, 1]


def test_batches_by_bucket_have_one_shape(common: Options) -> None:
    page = values(block("type=AspectRatioBatchSampler"), common=common)
    dataset = built(page["dataset"])
    sampler = sampler_of(page["sampler"], dataset)
    batches = page["batch_sampler"].pop("type")(sampler=sampler, batch_size=2, **page["batch_sampler"])
    batch = next(iter(DataLoader(dataset, batch_sampler=batches, collate_fn=collate_func_gen)))
    height, width = batch["data"]["pixel_values"].shape[2:]
    assert (width, height) in page["dataset"]["buckets"]


def test_captions_come_from_columns_and_fields(common: Options, dataset_with_columns: str) -> None:
    common["data_path"] = dataset_with_columns
    dataset = built(values(block("captions={"), common=common)["dataset"])
    assert dataset[0]["input_ids"].ndim == 1


@pytest.mark.parametrize("word", ["collate_func_gen_latents", "arrays=("])
def test_latents_take_the_images_place(word: str, common: Options, dataset_with_columns: str) -> None:
    del common["data_path"]
    text = block(word).replace("'data/laion6m_parquet'", "place")
    if "data_path" not in text:
        common["data_path"] = dataset_with_columns
    dataset = built(values(text, common=common, place=dataset_with_columns)["dataset"])
    batch = builder.mm.collate_func_gen_latents([dataset[0], dataset[1]])["data"]
    assert batch["image_latents"].shape == (2, 4, 2, 2)
    if "arrays" in text:
        assert batch["t5_mask"].tolist() == [[True, False], [True, True]]
        assert batch["clip_mask"].tolist() == [False, True]


@pytest.fixture
def dataset_with_columns(indexed: str, tmp_path: Path) -> str:
    """The columns that the page speaks of: two captions, latents, text embeddings of one or two rows, and one that the
    first row lacks."""
    place = shutil.copytree(indexed, tmp_path / "copy")
    reader = open_dataset(place)
    texts = [f'{{"key": "{row.key}", "short": "a picture"}}\n' for row in reader]
    (tmp_path / "short.jsonl").write_text("".join(texts))
    add_column(place, "short", tmp_path / "short.jsonl", on="key")
    shapes = {"dc32_512": lambda row: (4, 2, 2), "t5": lambda row: (1 + (row > 0), 3), "clip": lambda row: (5,)}
    for name, shape in shapes.items():
        for number, row in enumerate(reader):
            file = tmp_path / name / f"{row.path}.pt"
            file.parent.mkdir(parents=True, exist_ok=True)
            if number or name != "clip":
                torch.save(torch.ones(shape(number), dtype=torch.bfloat16), file)
        add_column(place, name, tmp_path / name, missing_ok=name == "clip")
    return str(place)
