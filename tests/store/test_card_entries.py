"""Configurations of the owner's own, beside the one that the tool makes."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from builder.store.card import make_interim_card, restore_card
from builder.store.card_merge import FACTS, PLACEHOLDER, Own, generated_part, own_part, take_apart
from tests.store.test_card import OPTIONS, VERSIONS, card, facts, metadata

EXTRA: dict[str, Any] = {
    "configs": [
        {"config_name": "aesthetic", "data_files": "extra/*.parquet", "description": "naïve: 図"},
        {"config_name": "same", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]},
    ],
    "dataset_info": [
        {"config_name": "aesthetic", "features": [{"name": "score", "dtype": "float32"}], "download_size": 5},
    ],
}


def edited(text: bytes, change: Any) -> bytes:
    values = metadata(text)
    change(values)
    return f"---\n{yaml.safe_dump(values, allow_unicode=True)}---\n".encode() + text.split(b"---\n", 2)[2]


def beside_ours(values: dict[str, Any]) -> None:
    values["configs"] = [*EXTRA["configs"], *values["configs"]]
    values["dataset_info"] = [{"config_name": "default", **values["dataset_info"]}, *EXTRA["dataset_info"]]


def test_configurations_of_the_owner_stay_beside_ours_which_is_made_anew() -> None:
    before = edited(card(), beside_ours)
    after = metadata(card(own_part(before, ""), rows=7))
    assert after["configs"] == metadata(card())["configs"] + EXTRA["configs"], "two of the same files, too"
    ours, *theirs = after["dataset_info"]
    assert theirs == EXTRA["dataset_info"]
    assert ours == {"config_name": "default"} | metadata(card(rows=7))["dataset_info"]


def test_a_card_with_further_configurations_comes_out_the_same_any_number_of_times() -> None:
    own = own_part(edited(card(), beside_ours), "")
    made = card(own)
    assert own_part(made, "") == own
    assert card(own_part(made, "")) == made


def test_further_configurations_do_not_hide_the_made_part() -> None:
    plain = card(repo=PLACEHOLDER)
    before = edited(plain, beside_ours)
    assert generated_part(before) == generated_part(plain)
    assert restore_card(take_apart(before, ""), facts().totals, OPTIONS, VERSIONS) == plain
    assert generated_part(before.replace(b"5998213", b"5998212")) != generated_part(plain)


def doubled(values: dict[str, Any]) -> None:
    values["dataset_info"] = [values["dataset_info"]] * 2


def doubled_config(values: dict[str, Any]) -> None:
    values["configs"] *= 2


def without_info(values: dict[str, Any]) -> None:
    values["dataset_info"] = EXTRA["dataset_info"]


@pytest.mark.parametrize("change", [doubled, doubled_config, without_info])
def test_a_made_entry_that_is_there_twice_or_not_at_all_is_not_as_made(change: Any) -> None:
    before = edited(card(), change)
    assert generated_part(before) != generated_part(card())
    assert restore_card(take_apart(before, ""), facts().totals, OPTIONS, VERSIONS) is None
    assert generated_part(card(own_part(before, ""))) == generated_part(card())


@pytest.mark.parametrize("value", [None, 3, "x", [], [3], {"default": 1}])
@pytest.mark.parametrize("key", ["configs", "dataset_info"])
def test_entries_that_are_none_are_made_anew(key: str, value: Any) -> None:
    def change(values: dict[str, Any]) -> None:
        values[key] = value

    before = edited(card(), change)
    assert generated_part(before) != generated_part(card())
    assert card(own_part(before, "")) == card()


def test_a_card_of_the_owners_own_keeps_the_only_entry_it_has() -> None:
    own = own_part(b"---\ndataset_info:\n  config_name: mine\n  download_size: 5\n---\n", "")
    assert metadata(card(own))["dataset_info"][1] == {"config_name": "mine", "download_size": 5}
    interim = make_interim_card(own, "user/x", ".parquet")
    assert metadata(interim)["dataset_info"] == [{"config_name": "mine", "download_size": 5}]
    assert own_part(interim, "") == own


def test_datasets_reads_both_configurations() -> None:
    pytest.importorskip("datasets")
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard

    data = DatasetCard(card(own_part(edited(card(), beside_ours), "")).decode()).data
    assert list(MetadataConfigs.from_dataset_card_data(data)) == ["default", "aesthetic", "same"]
    infos = DatasetInfosDict.from_dataset_card_data(data)
    assert infos["default"].splits["train"].num_examples == 5_998_213
    assert infos["aesthetic"].download_size == 5


def test_a_fresh_card_names_ours_without_a_list() -> None:
    assert own_part(card(), "") == Own()
    assert isinstance(metadata(card())["dataset_info"], dict)
    assert set(FACTS) <= set(metadata(card()))
