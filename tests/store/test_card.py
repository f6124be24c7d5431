from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.base import schema
from builder.base.errors import OutputError
from builder.store.card import Facts, code, make_card, make_interim_card, write_card
from builder.store.card_merge import FACTS, PLACEHOLDER, Own, generated_part, own_part, take_apart, unnamed
from tests.pushes import converted

VERSIONS = {"laion6m": "0.1.0", "pyarrow": "26.0.1"}
POLICY = {"caption_key": "auto", "max_aspect_ratio": 3.0, "min_side": None, "max_pixels": 178_956_970}
OPTIONS: dict[str, Any] = {"format": "parquet", "policy": POLICY, "max_shard_size": 500_000_000, "recaptions": []}


def facts(rows: int = 5_998_213, **changes: Any) -> Facts:
    totals = {"rows": rows, "listed": rows + 3, "rejected": {"image_missing": 2, "duplicate": 1}, "unlisted": 4}
    values = {"num_bytes": 12, "download_size": 10, "features": schema.FEATURES, "images": True, **changes}
    return Facts(totals, {**OPTIONS, **values.pop("options", {})}, VERSIONS, **values)


def card(own: Own | None = None, repo: str = "user/x", **changes: Any) -> bytes:
    return make_card(facts(**changes), own or Own(), repo)


def metadata(text: bytes) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(text.decode().split("---\n")[1])
    return values


def test_the_metadata_are_those_that_datasets_writes_and_reads() -> None:
    datasets = pytest.importorskip("datasets")
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCard, DatasetCardData

    text = card()
    data = DatasetCard(text.decode()).data
    info = DatasetInfosDict.from_dataset_card_data(data)["default"]
    assert info.features == datasets.Features.from_dict(schema.FEATURES)
    assert (info.splits["train"].num_examples, info.download_size, info.dataset_size) == (5_998_213, 10, 12)
    written = DatasetCardData()
    DatasetInfosDict({"default": info}).to_dataset_card_data(written)
    assert yaml.safe_dump(metadata(text)["dataset_info"]) == yaml.safe_dump(written.to_dict()["dataset_info"])
    assert type(metadata(text)["dataset_info"]["splits"][0]["num_bytes"]) is int


def test_the_features_are_those_that_datasets_infers_from_the_shards(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    out = converted(tmp_path, shards=1)
    inferred = datasets.load_dataset(
        "parquet", data_files=[str(path) for path in (out / "data").iterdir()], cache_dir=str(tmp_path / "cache")
    )["train"].features
    stated = datasets.load_dataset(str(out), split="train", streaming=True).features
    assert stated == inferred == datasets.Features.from_dict(schema.FEATURES)


@pytest.mark.parametrize(
    ("rows", "size"),
    [(0, "n<1K"), (999, "n<1K"), (1_000, "1K<n<10K"), (5_998_213, "1M<n<10M"), (10_000_000, "10M<n<100M")],
)
def test_the_size_category_is_that_of_the_rows(rows: int, size: str) -> None:
    assert metadata(card(rows=rows))["size_categories"] == [size]


def test_a_fresh_card_has_nothing_that_is_an_owners() -> None:
    assert own_part(card(), "here") == Own()
    assert take_apart(card(), "here").repo == "user/x"
    assert list(metadata(card())) == [
        "language", "license", "size_categories", "task_categories", "pretty_name", "dataset_info", "configs"
    ]  # fmt: skip


EDITED = b"""---
license: cc-by-4.0   # ours
tags:
- a   # first
# what follows is theirs
extra: {nested: [1, 2], text: "x: y"}
size_categories:
- n<1K
---
Above.

<!-- laion6m:begin old/name (whatever) -->
old text
<!-- laion6m:end -->

## Below

---
the end
"""


def test_what_the_owner_wrote_stays_when_the_rest_is_made_anew() -> None:
    own = own_part(EDITED, "here")
    assert (own.before, own.after) == ("Above.", "## Below\n\n---\nthe end")
    made = card(own)
    values = metadata(made)
    assert (values["license"], values["tags"], values["extra"]) == (
        "cc-by-4.0",
        ["a"],
        {"nested": [1, 2], "text": "x: y"},
    )
    assert values["size_categories"] == ["1M<n<10M"]
    assert list(values)[-3:] == ["extra", "dataset_info", "configs"], "theirs before what is made of the data"
    assert b"old text" not in made
    assert made.index(b"Above.") < made.index(b"laion6m:begin") < made.index(b"laion6m:end") < made.index(b"## Below")
    assert own_part(made, "here") == own
    assert card(own_part(made, "here")) == made, "as often as one likes"


def test_converting_again_keeps_the_text_and_the_repository_it_was_pushed_to() -> None:
    assert write_card(facts()) == card(repo=PLACEHOLDER)
    assert write_card(facts(), card(own_part(EDITED, ""))) == card(own_part(EDITED, ""))


@pytest.mark.parametrize(
    "broken",
    [
        EDITED.replace(b"<!-- laion6m:end -->\n", b""),
        EDITED.replace(b"<!-- laion6m:begin old/name (whatever) -->\n", b""),
        EDITED + b"<!-- laion6m:end -->\n",
        EDITED.replace(b"<!-- laion6m", b"<!--laion6m"),
        b"# A card of their own, without metadata\n\nold text, Above. and ## Below\n",
    ],
)
def test_where_the_markers_do_not_say_whose_the_text_is_none_of_it_is_lost(broken: bytes) -> None:
    made = card(own_part(broken, "here"))
    for text in (b"Above.", b"old text", b"## Below"):
        assert text in made
    assert generated_part(made) == generated_part(card())


@pytest.mark.parametrize("front", ["a: [", "- a list", "a: &x 1\nb: *y", "d: 2024-99-99", "{" * 1000])
def test_metadata_that_cannot_be_read_are_an_error_and_no_loss(front: str) -> None:
    with pytest.raises(OutputError, match="the YAML at the top of HERE cannot be read"):
        own_part(f"---\n{front}\n---\ntext".encode(), "HERE")
    assert generated_part(f"---\n{front}\n---\ntext".encode()) == b""


@pytest.mark.parametrize(
    "front",
    [
        "{tags: [a, b], license: other}",  # flow style: nothing to cut
        '"tags": [a, b]',
        "base: &b [a, b]\ntags: *b",  # an alias across keys
        "tags:\n- a\n- b\ndataset_info: &i\n  x: 1\nother: *i",  # one into a part that is made anew
        "tags: |-\n  # no comment\n  text",
    ],
)
def test_odd_metadata_keep_their_meaning(front: str) -> None:
    before = yaml.safe_load(front)
    made = metadata(card(own_part(f"---\n{front}\n---\n".encode(), "here")))
    assert {key: made[key] for key in before if key not in FACTS} == {k: v for k, v in before.items() if k not in FACTS}


def test_windows_line_ends_and_a_byte_order_mark_do_no_harm() -> None:
    assert own_part(b"\xef\xbb\xbf" + EDITED.replace(b"\n", b"\r\n"), "") == own_part(EDITED, "")


def test_the_made_part_is_the_same_whatever_the_owner_and_the_hub_do_to_the_rest() -> None:
    plain = generated_part(card(repo=PLACEHOLDER))
    assert plain.startswith(b'{"configs": [{"config_name": "default"')
    assert generated_part(card(own_part(EDITED, ""), repo="some/body")) == plain
    laid_out = yaml.safe_dump(
        metadata(card()), sort_keys=True, default_flow_style=True
    )  # as an editor of the Hub might
    body = card().decode().split("---\n", 2)[2]
    assert generated_part(f"---\n{laid_out}---\n{body}".encode()) == plain
    # Pushed to where it came from: the link to it must not be taken for the name that varies.
    assert generated_part(card(repo="wusize/laion6m")) == plain


@pytest.mark.parametrize(
    "changed",
    [
        card(rows=1),
        card(download_size=11),
        card().replace(b"| `key` |", b"| `name` |"),
        card().replace(b"num_examples: 5998213", b"num_examples: 5998212"),
        card().replace(b"path: data/train-*", b"path: data/*"),
        card().replace(b"<!-- laion6m:end -->", b""),
        b"",
    ],
)
def test_a_made_part_that_was_changed_is_another_one(changed: bytes) -> None:
    assert generated_part(changed) != generated_part(card())


def test_a_card_for_the_time_of_an_upload_claims_nothing() -> None:
    made = make_interim_card(own_part(EDITED, ""), "user/x", ".parquet")
    values = metadata(made)
    assert values["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    assert not {"dataset_info", "size_categories"} & set(values)
    assert own_part(made, "") == own_part(EDITED, "")


def test_a_card_without_images_promises_none() -> None:
    features = {name: spec for name, spec in schema.FEATURES.items() if name != "image"}
    text = card(images=False, features=features).decode()
    assert "CaptionDataset" not in text
    assert "open_dataset" not in text
    assert "name: image" not in text
    assert "load_dataset(" in text


HOSTILE = "x`` `<!-- laion6m:end -->\n| **b** $(rm) 図\x1b[31m\u202e"


def test_no_name_of_a_file_or_field_gets_out_of_its_place() -> None:
    policy = {**POLICY, "caption_key": HOSTILE}
    made = card(options={"policy": policy, "recaptions": [HOSTILE, "plain.parquet"]})
    assert own_part(made, "") == Own(), "no marker came in"
    assert b"\x1b" not in made
    assert "\u202e".encode() not in made
    assert made.decode().count("\n# ") == 1


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1))
def test_a_code_span_holds_any_text(text: str) -> None:
    span = code(text)
    fence = span[: len(span) - len(span.lstrip("`"))]
    inside = span[len(fence) : -len(fence)]
    assert span.endswith(fence)
    assert fence not in inside.strip("`") or len(fence) > 1
    assert "\n" not in span
    assert "<!--" not in span
    assert all(len(run) != len(fence) for run in _runs(inside))


def _runs(text: str) -> list[str]:
    return [run for run in "".join(each if each == "`" else " " for each in text).split(" ") if run]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    before=st.text(st.characters(codec="utf-8", exclude_characters="\r")),
    after=st.text(st.characters(codec="utf-8", exclude_characters="\r")),
    further=st.dictionaries(
        st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.none() | st.integers() | st.text(max_size=9)
    ),
)
def test_any_text_and_metadata_survive_any_number_of_pushes(before: str, after: str, further: dict[str, Any]) -> None:
    front = yaml.safe_dump(further) if further else ""
    edited = card().replace(b"---\n", b"---\n" + front.encode(), 1)
    begin = edited.index(b"<!-- laion6m:begin")
    edited = edited[:begin] + before.encode() + b"\n" + edited[begin:] + after.encode()
    own = own_part(edited, "")
    assert before.strip("\n") in own.before
    assert after.strip("\n") in own.after
    made = card(own, rows=7)
    assert own_part(made, "") == own
    assert {key: metadata(made)[key] for key in further if key not in FACTS} == {
        key: value for key, value in further.items() if key not in FACTS
    }
    assert generated_part(made) == generated_part(card(rows=7))


def test_statistics_of_a_pushed_card_come_out_again() -> None:
    """They are not in the card that a conversion makes: what verify compares must not know of them."""
    plain = make_card(facts(), Own(), "user/name")
    told = make_card(facts(), Own(before="mine", after="mine too"), "user/name", "## Statistics\n\n| a | b |")
    assert b"## Statistics" in told
    assert generated_part(told) == generated_part(plain)
    assert unnamed(take_apart(told, "")) == unnamed(take_apart(plain, ""))
    assert own_part(told, "").after == "mine too"
    assert make_card(facts(), own_part(told, ""), "user/name", "## Statistics\n\n| a | b |") == told
