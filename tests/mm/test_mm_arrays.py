"""Arrays of columns in samples and batches, rows that lack theirs among them."""

from __future__ import annotations

import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training side needs torch")

from builder import add_column, open_dataset, verify  # noqa: E402
from builder.base.errors import OptionError, SourceError  # noqa: E402
from builder.mm import CaptionDataset, collate_func_gen, collate_func_gen_latents  # noqa: E402
from builder.mm.arrays import collate_arrays  # noqa: E402
from builder.mm.skips import SampleError  # noqa: E402
from builder.read.view import View  # noqa: E402

Options = dict[str, Any]


def write(folder: Path, path: str, array: Any) -> None:
    file = folder / f"{path}.npy"
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, array)


@pytest.fixture(scope="module")
def dataset(indexed: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Columns ``latents`` (4 2 2), ``text`` (1 to 8 rows of 3) and ``some``, which rows 2 and 5 lack."""
    root = tmp_path_factory.mktemp("arrays")
    out = str(root / "out")
    shutil.copytree(indexed, out)
    for number, sample in enumerate(open_dataset(out)):
        write(root / "latents", sample.path, np.full((4, 2, 2), number, np.float32))
        write(root / "text", sample.path, np.full((number + 1, 3), number, np.float16))
        if number not in (2, 5):
            write(root / "some", sample.path, np.full((2,), number, np.int64))
    for name in ("latents", "text"):
        add_column(out, name, str(root / name), num_proc=1, quiet=True)
    with pytest.raises(SourceError, match="--missing-ok"):
        add_column(out, "some", str(root / "some"), num_proc=1, quiet=True)
    summary = add_column(out, "some", str(root / "some"), missing_ok=True, num_proc=1, quiet=True)
    assert (summary.matched, summary.missing) == (6, 2)
    return out


@pytest.fixture
def options(template: Options, letters: Any) -> Options:
    return {"tokenizer": letters, "prompt_template": template, "image_size": 32, "cap_source": "re_caption"}


def test_a_row_without_an_array_is_none(dataset: str) -> None:
    rows = open_dataset(dataset)
    assert [rows[i]["some"] is None for i in range(8)] == [i in (2, 5) for i in range(8)]
    assert [array is None for array in rows.column("some")] == [i in (2, 5) for i in range(8)]
    assert rows[3:].column("some")[2] is None
    assert verify(dataset).ok


def test_a_folder_with_no_array_at_all_is_an_error(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="for any of 8 images"):
        add_column(dataset, "none", str(tmp_path), missing_ok=True, num_proc=1, quiet=True)


def test_a_sample_has_any_number_of_arrays_beside_its_pixels(dataset: str, options: Options) -> None:
    data: Any = CaptionDataset(dataset, arrays=("latents", "text"), **options)
    data = pickle.loads(pickle.dumps(data))
    plain = CaptionDataset(dataset, **options)
    for number in range(8):
        random.seed(number)
        sample = data[number]
        random.seed(number)
        expected = plain[number]
        assert torch.equal(sample["pixel_values"], expected["pixel_values"])
        assert torch.equal(sample["input_ids"], expected["input_ids"])
        assert sample["latents"].shape == (4, 2, 2)
        assert sample["text"].shape == (number + 1, 3)
        assert set(sample["latents"].tolist()[0][0]) == {number}
        assert sample["text"].dtype == torch.float16


def test_latents_take_the_pixels_place_and_others_come_beside_them(dataset: str, options: Options) -> None:
    data: Any = CaptionDataset(dataset, image_latents="latents", arrays=["text"], **options)
    batch = collate_func_gen_latents(data.__getitems__([0, 3]))["data"]
    assert "pixel_values" not in batch
    assert batch["image_latents"].shape == (2, 4, 2, 2)
    assert batch["text"].shape == (2, 4, 3)
    assert batch["text_mask"].tolist() == [[True, False, False, False], [True] * 4]


def test_a_row_that_lacks_its_array_is_bad_unless_it_may(dataset: str, options: Options) -> None:
    with pytest.raises(SampleError, match="no array in the column some"):
        CaptionDataset(dataset, arrays=("some",), **options)[2]
    data: Any = CaptionDataset(dataset, arrays=("some", "latents"), missing_ok=("some",), **options)
    assert data[2]["some"] is None
    batch = collate_func_gen(data.__getitems__([1, 2]))["data"]
    assert batch["some"].tolist() == [[1, 1], [0, 0]]
    assert batch["some_mask"].tolist() == [True, False]
    assert batch["latents"].shape == (2, 4, 2, 2)
    assert "latents_mask" not in batch
    nothing = collate_func_gen(data.__getitems__([2, 5]))["data"]
    assert "some" not in nothing
    assert nothing["some_mask"].tolist() == [False, False]


def test_a_selections_arrays_are_those_of_its_rows(dataset: str, options: Options, tmp_path: Path) -> None:
    reader = open_dataset(dataset).reader
    View(reader, [6, 1]).save(tmp_path / "chosen")
    data: Any = CaptionDataset(tmp_path / "chosen", arrays=("text",), **options)
    assert [len(data[i]["text"]) for i in range(2)] == [7, 2]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"arrays": "text"}, 'arrays "text"'),
        ({"arrays": ("input_ids",)}, 'arrays "input_ids"'),
        ({"arrays": ("text",), "missing_ok": ("latents",)}, 'missing_ok "latents"'),
    ],
)
def test_arrays_that_cannot_be_are_refused(
    given: Options, problem: str, dataset: str, options: Options, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=problem):
        CaptionDataset(dataset, **given, **options)


def test_arrays_of_other_ranks_are_not_put_together() -> None:
    with pytest.raises(OptionError, match="Only the first dimension may differ"):
        collate_arrays("t5", [torch.zeros(2, 3), torch.zeros(2, 4)])
    with pytest.raises(OptionError, match="Only the first dimension may differ"):
        collate_arrays("t5", [torch.zeros(()), torch.zeros(2)])
    padded = collate_arrays("t5", [torch.ones(2, 3), None, torch.ones(1, 3)])
    assert padded["t5"].shape == (3, 2, 3)
    assert padded["t5_mask"].tolist() == [[True, True], [False, False], [True, False]]
