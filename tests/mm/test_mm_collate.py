import pickle
from functools import partial

import pytest

torch = pytest.importorskip("torch", reason="the training side needs torch")

from builder.base.errors import OptionError  # noqa: E402
from builder.mm import (  # noqa: E402
    CollateConcat,
    collate_func_gen,
    collate_func_gen_latents,
    collate_func_gen_tokens,
)

COLLATES = {
    "pixel_values": collate_func_gen,
    "image_latents": collate_func_gen_latents,
    "image_tokens": collate_func_gen_tokens,
}


def sample(key: str, length: int, kind: str = "text2image") -> dict[str, object]:
    image = torch.full((2, 3), length, dtype=torch.int64 if key == "image_tokens" else torch.float32)
    return {key: image, "input_ids": torch.arange(1, length + 1), "image_file": "a.jpg", "type": kind}


@pytest.mark.parametrize("key", COLLATES)
@pytest.mark.parametrize("pad_index", [0, 9])
def test_texts_are_padded_right_and_masked(key: str, pad_index: int) -> None:
    batch = COLLATES[key]([sample(key, 3), sample(key, 1), sample(key, 2)], pad_index=pad_index)
    assert set(batch) == {"data", "data_samples"}
    assert batch["data_samples"] is None
    data = batch["data"]
    assert list(data) == [key, "input_ids", "attention_mask"]
    assert data[key].shape == (3, 2, 3)
    assert data["input_ids"].tolist() == [[1, 2, 3], [1, pad_index, pad_index], [1, 2, pad_index]]
    assert data["input_ids"].dtype == torch.int64
    assert data["attention_mask"].tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    assert data["attention_mask"].dtype == torch.bool


def test_samples_are_left_as_they_were() -> None:
    samples = [sample("pixel_values", 2)]
    first, second = collate_func_gen(samples), collate_func_gen(samples)
    assert torch.equal(first["data"]["input_ids"], second["data"]["input_ids"])


def test_a_batch_of_one_kind_goes_to_its_function_under_its_name() -> None:
    config = [{"type": collate_func_gen, "pad_index": 5}, {"type": collate_func_gen_latents}]
    for _ in range(2):  # the config is not used up
        collate = CollateConcat(config, ["text2image", "latents2image"])
    pixels = collate([{}, sample("pixel_values", 1), sample("pixel_values", 2)])
    assert pixels["data"]["text2image"]["input_ids"].tolist() == [[1, 5], [1, 2]]
    assert pixels["data_samples"] is None
    latents = collate([sample("image_latents", 1, "latents2image")])
    assert list(latents["data"]) == ["latents2image"]


@pytest.mark.parametrize("kind", [collate_func_gen, "collate_func_gen"])
def test_a_runner_that_calls_the_type_with_each_batch_gets_the_batch(kind: object) -> None:
    """mmengine's: ``partial(CollateConcat, collate_fns=…, keys=…)(samples)``, again and again."""
    options = {"collate_fns": [{"type": kind, "pad_index": 5}], "keys": ["text2image"]}
    samples = [sample("pixel_values", 1), sample("pixel_values", 2)]
    collate = pickle.loads(pickle.dumps(partial(CollateConcat, **options)))
    for _ in range(2):
        batch = collate(samples)
        assert batch["data"]["text2image"]["input_ids"].tolist() == [[1, 5], [1, 2]]
    made = CollateConcat(**options)
    assert isinstance(made, CollateConcat)
    assert torch.equal(
        pickle.loads(pickle.dumps(made))(samples)["data"]["text2image"]["pixel_values"],
        torch.stack([sample["pixel_values"] for sample in samples]),
    )


def test_a_collate_function_that_nobody_knows_is_named() -> None:
    with pytest.raises((LookupError, ImportError), match=r'type "nowhere\.collate"'):
        CollateConcat([{"type": "nowhere.collate"}], ["text2image"])


def test_what_cannot_be_collated_is_named() -> None:
    with pytest.raises(OptionError, match="one for each of the 1"):
        CollateConcat([{"type": collate_func_gen}], ["a", "b"])
    with pytest.raises(OptionError, match=r"pixel_values.*one has only image_latents, input_ids"):
        collate_func_gen([sample("image_latents", 1)])
    one, other = sample("pixel_values", 1), sample("pixel_values", 1)
    other["pixel_values"] = torch.zeros(2, 4)
    with pytest.raises(OptionError, match=r"a batch has the shapes \(2, 3\) and \(2, 4\). .*AspectRatioBatchSampler"):
        collate_func_gen([one, other])
    with pytest.raises(OptionError, match=r"type: .*this one has pad_index"):
        CollateConcat([{"pad_index": 1}], ["text2image"])
    collate = CollateConcat([{"type": collate_func_gen}], ["text2image"])
    with pytest.raises(OptionError, match="the collate functions are for text2image"):
        collate([sample("pixel_values", 1, "image2image")])
    with pytest.raises(OptionError, match="every sample is empty"):
        collate([{}])
