"""Whole batches: the samples that asking one by one gives, in one block of memory."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training side needs torch")

from torch.utils.data import DataLoader  # noqa: E402

from builder.mm import CaptionDataset, collate_func_gen  # noqa: E402
from builder.mm.batch import stack  # noqa: E402
from builder.mm.skips import SampleError  # noqa: E402

Options = dict[str, Any]
WAYS: dict[str, Options] = {
    "exact": {},
    "uint8": {"out": "uint8"},
    "fast": {"imdecode_backend": "cv2", "out": "uint8"},
    "fast, float32": {"imdecode_backend": "cv2"},
    "buckets": {"buckets": [(32, 32), (48, 24), (24, 48)]},
}


class FastLetters:
    """A tokenizer that takes several texts at once, as transformers' fast ones do."""

    is_fast = True
    calls = 0

    def encode(self, text: str, return_tensors: str, add_special_tokens: bool = True) -> Any:
        return torch.tensor(self([text], add_special_tokens=add_special_tokens)["input_ids"])

    def __call__(self, texts: Sequence[str], add_special_tokens: bool = True, **_: Any) -> dict[str, Any]:
        FastLetters.calls += 1
        return {"input_ids": [[1] * add_special_tokens + [ord(letter) for letter in text] for text in texts]}


@pytest.fixture
def options(template: Options) -> Options:
    return {
        "tokenizer": FastLetters(),
        "prompt_template": template,
        "cap_source": "re_caption",
        "image_size": 32,
        "unconditional": 0.5,
        "max_length": 60,
    }


NO_BUCKETS = ("buckets", "files")
"""Buckets need an index."""


def assert_same(one: Options, other: Options) -> None:
    assert list(one) == list(other)
    for name, value in one.items():
        same = torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        assert same, name
        assert not isinstance(value, torch.Tensor) or value.dtype == other[name].dtype


@pytest.mark.parametrize(
    ("way", "where"), [(way, where) for way in WAYS for where in ("index", "files") if (way, where) != NO_BUCKETS]
)
def test_a_batch_is_what_its_samples_are_one_by_one(
    way: str, where: str, indexed: str, files: Path, options: Options
) -> None:
    if "cv2" in WAYS[way].values():
        pytest.importorskip("cv2")
    data: Any = CaptionDataset(indexed if where == "index" else str(files), **options, **WAYS[way])
    for numbers in ([3, 1, -1, 3], [0], [*range(8)]):
        random.seed(1)
        alone = [data[number] for number in numbers]
        drawn = random.random()
        random.seed(1)
        together = data.__getitems__(numbers)
        assert random.random() == drawn
        for one, other in zip(alone, together, strict=True):
            assert_same(one, other)


def test_images_lie_in_one_block_and_are_not_copied(indexed: str, options: Options) -> None:
    data: Any = CaptionDataset(indexed, **options)
    samples = data.__getitems__([0, 1, 2])
    FastLetters.calls = 0
    batch = collate_func_gen(samples)["data"]
    assert batch["pixel_values"].data_ptr() == samples[0]["pixel_values"].data_ptr()
    assert batch["pixel_values"].shape == (3, 3, 32, 32)
    assert batch["pixel_values"].is_contiguous()
    data.__getitems__([0, 1, 2])
    assert FastLetters.calls == 1
    copied = collate_func_gen([data[i] for i in range(3)])["data"]
    assert copied["pixel_values"].data_ptr() != batch["pixel_values"].data_ptr()


def test_only_a_whole_block_is_taken_for_one() -> None:
    block = torch.arange(24.0).reshape(4, 2, 3)
    assert stack(list(block)).data_ptr() == block.data_ptr()
    for some in ([block[0], block[1]], [block[1], block[0], block[2], block[3]], [block[0]] * 4):
        made = stack(some)
        assert torch.equal(made, torch.stack(some))
        assert made.data_ptr() != block.data_ptr()
    turned = [each.t() for each in torch.arange(24.0).reshape(4, 3, 2)]
    assert torch.equal(stack(turned), torch.stack(turned))
    empty = [torch.zeros(0, 3)] * 2
    assert stack(empty).shape == (2, 0, 3)


def first_pixels(samples: Any) -> Any:
    batch = collate_func_gen(samples)["data"]["pixel_values"]
    return batch, batch.is_shared()


def test_a_worker_writes_a_batch_into_memory_that_is_shared(indexed: str, options: Options) -> None:
    data: Any = CaptionDataset(indexed, **{**options, "unconditional": 0})
    loader = DataLoader(
        data, batch_size=4, num_workers=1, collate_fn=first_pixels, multiprocessing_context="fork", shuffle=False
    )
    for pixels, shared in loader:
        assert shared
        assert pixels.shape == (4, 3, 32, 32)
        assert pixels.float().std() > 0.05


@pytest.fixture
def damaged(files: Path, tmp_path: Path) -> Path:
    """The files, in which image 5 of the list is cut in half."""
    root = tmp_path / "damaged"
    shutil.copytree(files, root)
    data = CaptionDataset(str(root))
    path = root / "raw" / data.data_list[5]["image"]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return root


def test_a_bad_sample_of_a_batch_is_named_or_skipped(damaged: Path, options: Options) -> None:
    data: Any = CaptionDataset(str(damaged), **options)
    with pytest.raises(SampleError, match="sample 5"):
        data.__getitems__([4, 5, 6])
    data = CaptionDataset(str(damaged), on_error="skip", **options)
    with pytest.warns(UserWarning, match="skipped"):
        samples = data.__getitems__([4, 5, 6])
    assert [sample["image_file"] for sample in samples] == [data.data_list[i]["image"] for i in (4, 6, 6)]
    batch = collate_func_gen(samples)["data"]["pixel_values"]
    assert batch.data_ptr() == samples[0]["pixel_values"].data_ptr()
    assert torch.equal(batch[1], samples[1]["pixel_values"])
    with pytest.raises(IndexError):
        data.__getitems__([0, 99])


@pytest.mark.parametrize("method", ["__getitem__", "_load", "_process_image", "_process_text", "_read_image"])
def test_a_subclasss_own_method_is_asked_for_every_sample(method: str, indexed: str, options: Options) -> None:
    calls = []

    def counted(self: Any, *args: Any) -> Any:
        calls.append(args)
        return getattr(CaptionDataset, method)(self, *args)

    data: Any = type("Own", (CaptionDataset,), {method: counted})(indexed, **options)
    plain: Any = CaptionDataset(indexed, **options)
    random.seed(2)
    samples = data.__getitems__([0, 1, 2])
    assert len(calls) == 3
    random.seed(2)
    for one, other in zip(samples, plain.__getitems__([0, 1, 2]), strict=True):
        assert_same(one, other)


def test_debug_gives_batches_of_the_first_sample(indexed: str, options: Options) -> None:
    data: Any = CaptionDataset(indexed, debug=True, **options)
    assert {sample["image_file"] for sample in data.__getitems__([3, 4])} == {data.data_list[0]["image"]}


def test_a_block_of_floats_holds_what_pixels_become() -> None:
    """In place, with the same three roundings."""
    raw = torch.from_numpy(np.arange(256, dtype=np.uint8))
    block = torch.empty(2, 256)
    block[1].copy_(raw)
    block[1].div_(255).mul_(2).sub_(1)
    assert torch.equal(block[1], 2 * (raw.float() / 255) - 1)
