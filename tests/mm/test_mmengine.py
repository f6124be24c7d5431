"""Inside mmengine: configs of both styles, the Runner's loader, and resuming through the hook."""

from __future__ import annotations

import pickle
import warnings
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

torch = pytest.importorskip("torch", reason="the training side needs torch")
pytest.importorskip("mmengine", reason="mmengine is not installed")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mmengine.config import Config
    from mmengine.dataset import InfiniteSampler as MmengineSampler
    from mmengine.hooks import Hook
    from mmengine.model import BaseModel
    from mmengine.registry import DATA_SAMPLERS, DATASETS, FUNCTIONS, HOOKS
    from mmengine.runner import Runner

import builder.mm as mm  # noqa: E402
from builder.base.errors import OptionError  # noqa: E402
from builder.mm.bucket_sampler import bucketed  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # mmengine's own, of which there are many

PROCESSORS = """
from transformers import AutoTokenizer
prompt_template = dict(
    IMG_START_TOKEN='<img>', IMG_END_TOKEN='</img>', IMG_CONTEXT_TOKEN='<IMG_CONTEXT>',
    SYSTEM='<|im_start|>system\\n{{system}}<|im_end|>\\n',
    INSTRUCTION=('<|im_start|>user\\n{{input}}<|im_end|>\\n' '<|im_start|>assistant\\n'),
    SUFFIX='<|im_end|>', SUFFIX_AS_EOS=True, SEP='\\n', STOP_WORDS=['<|im_end|>'],
    GENERATION='Generate an image: {{input}}', CFG='Generate an image.')
pad_index = 0
image_size = 32
tokenizer = dict(type=AutoTokenizer.from_pretrained, pretrained_model_name_or_path={tokenizer!r}, padding_side='right')
"""

LAZY = """
from mmengine.config import read_base
from mmengine.dataset import InfiniteSampler
from builder.mm import CaptionDataset, collate_func_gen

with read_base():
    from .processors import prompt_template, tokenizer, image_size, pad_index

dataset = dict(type=CaptionDataset, image_size=image_size, cap_source='re_caption', cap_folder={root!r} + '/captions',
               data_path={data_path!r}, image_folder={root!r} + '/raw', unconditional=0.1,
               prompt_template=prompt_template, ceph_folder=None, ceph_config=None, tokenizer=tokenizer, max_length=128)

train_dataloader = dict(
    batch_size=4, num_workers=0, pin_memory=False, dataset=dataset, sampler=dict(type=InfiniteSampler, shuffle=True),
    collate_fn=dict(type=collate_func_gen, pad_index=pad_index))
"""

TEXT = """
custom_imports = dict(imports=['builder.mm'], allow_failed_imports=False)
prompt_template = dict(IMG_START_TOKEN='<img>', INSTRUCTION='{{input}}', GENERATION='{{input}}', CFG='')
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='ResumableInfiniteSampler', shuffle=True),
    dataset=dict(
        type='CaptionDataset', data_path={data_path!r}, cap_source='re_caption', image_size=32,
        prompt_template=prompt_template,
        tokenizer=dict(type='transformers.AutoTokenizer.from_pretrained', pretrained_model_name_or_path={tokenizer!r})),
    collate_fn=dict(type='collate_func_gen', pad_index=0))
"""


def write_lazy(folder: Path, data_path: str, root: Path, tokenizer: str, config: str = LAZY) -> Any:
    (folder / "processors.py").write_text(PROCESSORS.format(tokenizer=tokenizer))
    (folder / "config.py").write_text(config.format(data_path=data_path, root=str(root)))
    return Config.fromfile(folder / "config.py")


def check(batch: dict[str, Any]) -> None:
    assert batch["data_samples"] is None
    data = batch["data"]
    assert data["pixel_values"].shape == (4, 3, 32, 32)
    assert data["pixel_values"].dtype == torch.float32
    assert data["input_ids"].shape == data["attention_mask"].shape
    assert data["input_ids"].max() > 1  # the words are known


@pytest.mark.parametrize("target", ["index", "files"])
def test_upstreams_lazy_config_with_one_line_changed_gives_batches(
    target: str, files: Path, indexed: str, tokenizer_folder: str, tmp_path: Path
) -> None:
    data_path = indexed if target == "index" else str(files / "data.json")
    config = write_lazy(tmp_path, data_path, files, tokenizer_folder)
    loader = Runner.build_dataloader(config.train_dataloader, seed=1)
    batches = iter(loader)
    for _ in range(3):
        check(next(batches))


def test_a_text_config_names_everything_by_strings(indexed: str, tokenizer_folder: str, tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text(TEXT.format(data_path=indexed, tokenizer=tokenizer_folder))
    config = Config.fromfile(tmp_path / "config.py")
    loader = Runner.build_dataloader(config.train_dataloader, seed=1)
    assert type(loader.sampler) is mm.InfiniteSampler
    check(next(iter(loader)))


LAZY_CONCAT = LAZY.replace(
    "CaptionDataset, collate_func_gen", "CaptionDataset, CollateConcat, collate_func_gen"
).replace(
    "collate_fn=dict(type=collate_func_gen, pad_index=pad_index)",
    "collate_fn=dict(type=CollateConcat, collate_fns=[dict(type=collate_func_gen, pad_index=7)], keys=['text2image'])",
)
TEXT_CONCAT = TEXT.replace(
    "dict(type='collate_func_gen', pad_index=0)",
    "dict(type='CollateConcat', keys=['text2image'], collate_fns=[dict(type='collate_func_gen', pad_index=7)])",
)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("style", ["lazy", "text"])
def test_batches_of_one_kind_are_named_by_it_in_configs_of_both_styles(
    style: str, workers: int, files: Path, indexed: str, tokenizer_folder: str, tmp_path: Path
) -> None:
    """Also in workers that are spawned, where nothing has been registered."""
    if style == "lazy":
        config = write_lazy(tmp_path, indexed, files, tokenizer_folder, LAZY_CONCAT)
    else:
        (tmp_path / "config.py").write_text(TEXT_CONCAT.format(data_path=indexed, tokenizer=tokenizer_folder))
        config = Config.fromfile(tmp_path / "config.py")
    config.train_dataloader.num_workers = workers
    if workers:
        config.train_dataloader.multiprocessing_context = "spawn"
        config.train_dataloader.persistent_workers = True
    batches = iter(Runner.build_dataloader(config.train_dataloader, seed=1))
    for _ in range(3):
        batch = next(batches)
        assert list(batch["data"]) == ["text2image"]
        data = batch["data"]["text2image"]
        check({"data": data, "data_samples": batch["data_samples"]})
        assert set(data["input_ids"][~data["attention_mask"]].tolist()) <= {7}


def test_everything_is_registered() -> None:
    assert DATASETS.get("CaptionDataset") is mm.CaptionDataset
    assert DATASETS.get("builder.mm.CaptionDataset") is mm.CaptionDataset
    for name in ("EpochSampler", "MixtureSampler", "AspectRatioBatchSampler"):
        assert DATA_SAMPLERS.get(name) is getattr(mm, name)
    assert DATA_SAMPLERS.get("ResumableInfiniteSampler") is mm.InfiniteSampler
    for name in ("collate_func_gen", "collate_func_gen_latents", "collate_func_gen_tokens", "CollateConcat"):
        assert FUNCTIONS.get(name) is getattr(mm, name)
    for name in ("SamplerStateHook", "NormalizePixelsHook"):
        assert HOOKS.get(name) is getattr(mm, name)
    with pytest.raises(AttributeError, match="nothing"):
        mm.nothing  # noqa: B018


class Seen(Hook):
    """Notes which images each iteration trained on."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.batches.append(data_batch["names"])


class Tiny(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, pixel_values: Any, names: Any, mode: str = "loss") -> dict[str, Any]:
        return {"loss": (self.scale * pixel_values.float().mean()).square()}


def names_and_pixels(samples: list[dict[str, Any]]) -> dict[str, Any]:
    pixels = torch.stack([sample["pixel_values"].float().mean((1, 2)) for sample in samples])
    return {"pixel_values": pixels, "names": [sample["image_file"] for sample in samples]}


class Counted(mm.CaptionDataset):
    loaded = 0

    def _load(self, entry: Any) -> Any:
        type(self).loaded += 1
        return super()._load(entry)


@pytest.fixture
def run(indexed: str, letters: Any, template: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trains up to an iteration, from the start or from the last checkpoint, and tells what each iteration saw.

    mmengine's checkpoints hold more than tensors, which torch refuses to load unless told.
    """
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    options = {"data_path": indexed, "cap_source": "re_caption", "tokenizer": letters, "prompt_template": template}
    return partial(train, options)


def train(
    options: dict[str, Any],
    work_dir: Path,
    iterations: int,
    kind: str = "rows",
    resume: bool = False,
    hook: bool = True,
    seed: int | None = None,
) -> list[list[str]]:
    buckets = [(16, 16), (24, 12), (12, 24)]
    sampler = {"mixture": mm.MixtureSampler, "epochs": mm.EpochSampler}.get(kind, mm.InfiniteSampler)
    data: Any = Counted(image_size=16, buckets=buckets if kind == "buckets" else False, **options)
    if kind == "mixture":
        data = torch.utils.data.ConcatDataset([data, data])
    loader = {
        "dataset": data,
        "sampler": {"type": sampler, **({"weights": [1, 2]} if kind == "mixture" else {})},
        "collate_fn": {"type": names_and_pixels},
        "num_workers": 0,
        "batch_size": 2,
    }
    if kind == "buckets":
        loader["batch_sampler"] = {"type": mm.AspectRatioBatchSampler, "drop_last": False}
    seen = Seen()
    by_iteration = {"by_epoch": False, "max_iters": iterations, "val_interval": 10**9}
    runner = Runner(
        model=Tiny(),
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg={"by_epoch": True, "max_epochs": iterations} if kind == "epochs" else by_iteration,
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.0}},
        default_hooks={"checkpoint": {"type": "CheckpointHook", "by_epoch": False, "interval": 3}, "logger": None},
        custom_hooks=[*([{"type": "SamplerStateHook"}] if hook else []), seen],
        log_level="ERROR",
        resume=resume,
        randomness={"seed": seed if resume else 5},
        experiment_name=uuid4().hex,  # mmengine keeps a message hub by name as long as the process lives
    )
    runner.train()
    return seen.batches


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rows", "buckets", "mixture"])
def test_a_resumed_runner_trains_on_the_very_next_batch_and_loads_no_other(kind: str, run: Any, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", 11, kind)
    assert len(whole) == 11
    assert run(tmp_path / "halves", 6, kind) == whole[:6]
    Counted.loaded = 0
    assert run(tmp_path / "halves", 9, kind, resume=True) == whole[6:9]
    assert Counted.loaded == sum(map(len, whole[6:9]))
    assert run(tmp_path / "halves", 11, kind, resume=True) == whole[9:]


def test_a_loop_by_epochs_sees_every_row_in_each_in_another_order(run: Any, tmp_path: Path) -> None:
    batches = run(tmp_path, 2, "epochs")
    epochs = [[name for batch in batches[first : first + 4] for name in batch] for first in (0, 4)]
    assert len(batches) == 8
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(set(epochs[0]))
    assert epochs[0] != epochs[1]


def test_a_checkpoint_from_before_the_hook_resumes_too(run: Any, tmp_path: Path) -> None:
    """Its place is worked out from the iterations done; the seed has to be the same again."""
    whole = run(tmp_path / "whole", 8)
    run(tmp_path / "halves", 6, hook=False)
    assert run(tmp_path / "halves", 8, resume=True, seed=5) == whole[6:]


def test_the_hook_wants_a_sampler_that_can_resume(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for sampler in (MmengineSampler, mm.EpochSampler):
        monkeypatch.setattr(mm, "InfiniteSampler", sampler)
        with pytest.raises(OptionError, match="sampler"):
            run(tmp_path / sampler.__name__, 2)


def test_uint8_pixels_are_normalised_before_the_model_sees_them() -> None:
    class Runner:
        model = Tiny()

    raw = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    batch = {
        "data": {"text2image": {"pixel_values": raw}, "input_ids": torch.ones(1, dtype=torch.uint8)},
        "data_samples": None,
    }
    mm.NormalizePixelsHook().before_train_iter(Runner(), 0, batch)
    pixels = batch["data"]["text2image"]["pixel_values"]
    assert torch.equal(pixels, 2 * (raw.float() / 255) - 1)
    assert batch["data"]["input_ids"].dtype == torch.uint8
    mm.NormalizePixelsHook().before_train_iter(Runner(), 0, batch)
    assert batch["data"]["text2image"]["pixel_values"] is pixels  # floats are left alone


@pytest.mark.parametrize("stage", ["train", "val", "test"])
def test_uint8_pixels_are_normalised_in_every_loop_and_whatever_puts_batches_together(
    stage: str, indexed: str, letters: Any, template: Any, tmp_path: Path
) -> None:
    """mmengine's pseudo_collate makes lists of tensors."""
    seen: list[Any] = []

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, pixel_values: Any, mode: str = "loss", **others: Any) -> Any:
            seen.extend(pixel_values)
            return {"loss": self.scale.sum()} if mode == "loss" else [None for _ in pixel_values]

    options = {"cap_source": "re_caption", "tokenizer": letters, "prompt_template": template, "image_size": 16}
    data = mm.CaptionDataset(indexed, out="uint8", **options)
    sampler = {"type": mm.EpochSampler, "shuffle": False}
    parts: dict[str, Any] = {
        f"{stage}_dataloader": {"dataset": data, "batch_size": 2, "num_workers": 0, "sampler": sampler},
        f"{stage}_cfg": {"by_epoch": True, "max_epochs": 1} if stage == "train" else {},
    }
    if stage == "train":
        parts["optim_wrapper"] = {"optimizer": {"type": "SGD", "lr": 0.0}}
    else:
        parts[f"{stage}_evaluator"] = {"type": "DumpResults", "out_file_path": str(tmp_path / "results.pkl")}
    runner = Runner(
        model=Model(),
        work_dir=str(tmp_path),
        default_hooks={"checkpoint": None, "logger": None},
        custom_hooks=[{"type": "NormalizePixelsHook"}],
        log_level="ERROR",
        experiment_name=uuid4().hex,
        **parts,
    )
    getattr(runner, stage)()
    assert len(seen) == 8
    assert all(pixels.dtype == torch.float32 and pixels.min() < -0.1 for pixels in seen)


@pytest.mark.parametrize("given", ["config", "object"])
def test_mmengines_own_wrappers_take_a_caption_dataset(given: str, indexed: str, letters: Any, template: Any) -> None:
    from mmengine.dataset import ConcatDataset, RepeatDataset

    options = {"cap_source": "re_caption", "tokenizer": letters, "prompt_template": template, "image_size": 16}
    options["buckets"] = [(16, 16), (24, 12), (12, 24)]
    config = {"type": mm.CaptionDataset, "data_path": indexed, **options}
    part = config if given == "config" else mm.CaptionDataset(indexed, **options)
    both: Any = ConcatDataset([part, part])
    assert (len(both), both.metainfo) == (16, {})
    assert both[9]["image_file"] == both[1]["image_file"]
    info = both.get_data_info(9)
    assert (info["sample_idx"], info["image"]) == (1, both[1]["image_file"])
    assert len(list(mm.EpochSampler(both, seed=1))) == 16
    assert {row < 8 for row in islice(mm.MixtureSampler(both, [1, 2], seed=1), 30)} == {True, False}
    thrice: Any = RepeatDataset(part, 3)
    assert len(thrice) == 24
    assert thrice[17]["image_file"] == both[1]["image_file"]
    assert thrice.get_data_info(-1)["sample_idx"] == 7
    numbers = bucketed(both.datasets[0])[1].tolist()
    assert bucketed(thrice)[1].tolist() == numbers * 3
    again = pickle.loads(pickle.dumps(mm.CaptionDataset(indexed, **{**options, "tokenizer": None})))
    assert len(again) == 8


# xtuner


@pytest.fixture(scope="session")
def xtuner() -> Any:
    pytest.importorskip("xtuner", reason="xtuner is not installed")
    import xtuner.dataset

    return xtuner


CONCAT = """
from mmengine.config import read_base
from builder.mm import CaptionDataset, MixtureSampler, collate_func_gen
from xtuner.dataset import ConcatDataset

with read_base():
    from .processors import prompt_template, tokenizer, image_size, pad_index

one = dict(type=CaptionDataset, image_size=image_size, cap_source='re_caption', data_path={data_path!r},
           unconditional=0.1, prompt_template=prompt_template, tokenizer=tokenizer)
two = dict(one, data_path={root!r})
dataset = dict(type=ConcatDataset, datasets=[one, two])
train_dataloader = dict(
    batch_size=4, num_workers=0, dataset=dataset, sampler=dict(type=MixtureSampler, weights=[1, 3]),
    collate_fn=dict(type=collate_func_gen, pad_index=pad_index))
"""


def test_datasets_go_into_xtuners_concatenation(
    xtuner: Any, files: Path, indexed: str, tokenizer_folder: str, tmp_path: Path
) -> None:
    config = write_lazy(tmp_path, indexed, files, tokenizer_folder, CONCAT)
    loader = Runner.build_dataloader(config.train_dataloader, seed=1)
    assert type(loader.dataset) is xtuner.dataset.ConcatDataset
    assert loader.dataset.cumulative_sizes == [8, 16]
    check(next(iter(loader)))


def test_the_default_padding_is_xtuners(xtuner: Any) -> None:
    from xtuner.utils import DEFAULT_PAD_TOKEN_INDEX

    from builder.mm.collate import PAD_INDEX

    assert PAD_INDEX == DEFAULT_PAD_TOKEN_INDEX
