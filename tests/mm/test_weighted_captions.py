"""Several captions by weight: columns and annotation fields."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the training side needs torch")

from builder import add_column  # noqa: E402
from builder.base.errors import OptionError  # noqa: E402
from builder.mm import CaptionDataset  # noqa: E402
from builder.mm.captions import CaptionChoice  # noqa: E402
from builder.mm.skips import SampleError  # noqa: E402

Options = dict[str, Any]


def test_captions_come_by_weight_and_a_row_that_lacks_one_uses_the_others() -> None:
    choice = CaptionChoice({"long": 0.7, "short": 0.2, "TEXT": 0.1})
    random.seed(0)
    row = {"long": "l", "short": "s", "TEXT": "t"}
    drawn = [choice.choose(row.get) for _ in range(4000)]
    for caption, share in (("l", 0.7), ("s", 0.2), ("t", 0.1)):
        assert abs(drawn.count(caption) / 4000 - share) < 0.03
    for blank in (None, "", "  \n", 5, []):
        drawn = [choice.choose({**row, "long": blank}.get) for _ in range(3000)]
        assert abs(drawn.count("s") / 3000 - 2 / 3) < 0.04
    with pytest.raises(ValueError, match="none of the captions long, short, TEXT"):
        choice.choose({}.get)


def test_of_a_list_of_captions_one_is_drawn() -> None:
    choice = CaptionChoice({"many": 1})
    random.seed(0)
    drawn = [choice.choose({"many": ["a", "", "b", None]}.get) for _ in range(400)]
    assert 120 < drawn.count("a") < 280
    assert set(drawn) == {"a", "b"}


def test_one_caption_draws_nothing() -> None:
    random.seed(4)
    before = random.getstate()
    assert CaptionChoice({"caption": 1}).choose({"caption": " as it stands "}.get) == " as it stands "
    assert random.getstate() == before


@pytest.mark.parametrize(
    "weights", [{}, {"a": 0}, {"a": -1}, {"a": "1"}, {"a": float("nan")}, ["a"], {1: 1}, "caption", {"a": None}]
)
def test_weights_that_are_none_are_refused(weights: Any) -> None:
    with pytest.raises(OptionError, match=r"^captions[ :]"):
        CaptionChoice(weights)


def test_a_name_that_no_row_has_is_a_warning() -> None:
    choice = pickle.loads(pickle.dumps(CaptionChoice({"caption": 1, "shrot": 1})))
    for _ in range(499):
        choice.choose({"caption": "c"}.get)
    with pytest.warns(UserWarning, match="none of 500 rows had shrot"):
        choice.choose({"caption": "c"}.get)
    choice.choose({"caption": "c"}.get)  # once


@pytest.fixture
def with_columns(indexed: str, tmp_path: Path) -> str:
    """Every other row has a short caption, as a column."""
    out = str(tmp_path / "out")
    shutil.copytree(indexed, out)
    rows = CaptionDataset(out).data_list
    lines = [{"path": row["image"], "short": f"short {number}"} for number, row in enumerate(rows) if number % 2]
    (tmp_path / "short.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    add_column(out, "short", str(tmp_path / "short.jsonl"), quiet=True)
    return out


@pytest.fixture
def options(template: Options, letters: Any) -> Options:
    return {"tokenizer": letters, "prompt_template": template, "image_size": 32, "unconditional": 0, "max_length": 999}


def text_of(sample: Options) -> str:
    return "".join(map(chr, sample["input_ids"].tolist()[1:]))


def test_a_dataset_draws_from_columns_and_fields(with_columns: str, options: Options) -> None:
    data = CaptionDataset(with_columns, captions={"re_caption": 0.5, "short": 0.5, "TEXT": 0.1}, **options)
    data = pickle.loads(pickle.dumps(data))
    random.seed(0)
    texts = {number: {text_of(data[number]) for _ in range(30)} for number in range(4)}
    assert [len(texts[number]) for number in range(4)] == [1, 2, 1, 2]
    assert any("short 1" in text for text in texts[1])
    assert all("picture number" in text for text in texts[0])


def test_one_caption_of_weight_1_is_upstreams_to_the_bit(indexed: str, files: Path, options: Options) -> None:
    options["unconditional"] = 0.5
    for path in (indexed, str(files)):
        for name in ("re_caption", "caption") if path == indexed else ("re_caption",):
            plain = CaptionDataset(path, cap_source=name, **options)
            weighted = CaptionDataset(path, captions={name: 1}, **options)
            for number in range(len(plain)):
                random.seed(number)
                expected, state = plain[number], random.getstate()
                random.seed(number)
                got = weighted[number]
                assert random.getstate() == state
                assert torch.equal(got["input_ids"], expected["input_ids"])
                assert torch.equal(got["pixel_values"], expected["pixel_values"])


def test_a_row_without_any_is_a_bad_sample(with_columns: str, options: Options) -> None:
    data = CaptionDataset(with_columns, captions={"short": 1}, **options)
    assert "short 1" in text_of(data[1])
    with pytest.raises(SampleError, match="none of the captions short"):
        data[0]
