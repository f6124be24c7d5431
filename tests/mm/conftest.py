"""What the tests of the training side share: a tokenizer, a prompt template, and small sources as files."""

from __future__ import annotations

import json
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.letters import Letters

torch = pytest.importorskip("torch", reason="the training side needs torch")
torch.set_num_threads(1)  # threads that wait for each other on a busy machine take many times as long as one


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # mmengine, where it is installed, imports things that are deprecated
    from tests.torchvision_cpu import torchvision_operators

    OPERATORS = torchvision_operators()
    import builder.mm  # noqa: F401
from builder.conversion.convert import convert  # noqa: E402

TEMPLATE = {
    "IMG_START_TOKEN": "<img>",
    "INSTRUCTION": "<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n",
    "GENERATION": "Generate an image: {input}",
    "CFG": "Generate an image.",
}


@pytest.fixture
def template() -> dict[str, Any]:
    return dict(TEMPLATE)


@pytest.fixture
def letters() -> Letters:
    return Letters()


SIZES = [(120, 90), (90, 120), (100, 100), (300, 200), (200, 301), (96, 160), (250, 250), (130, 110)]


def write_files(root: Path, count: int = 8) -> Path:
    """The card layout as files: raw/, captions/, data.json, in an order that no sorting gives."""
    random = np.random.default_rng(0)
    entries = []
    for number in range(count):
        shard, name = f"{number % 2:05d}", f"{number:09d}"
        width, height = SIZES[number % len(SIZES)]
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        image = coarse.resize((width, height), Image.Resampling.BICUBIC)
        ending = "png" if number % 4 == 3 else "jpg"
        exif = Image.Exif()
        exif[0x0112] = 6
        for folder in ("raw", "captions"):
            (root / folder / shard).mkdir(parents=True, exist_ok=True)
        image.save(root / "raw" / shard / f"{name}.{ending}", exif=exif)
        annotation = {"re_caption": f"  picture number {number}, über {{braces}}\n", "width": width}
        (root / "captions" / shard / f"{name}.json").write_text(json.dumps(annotation, ensure_ascii=False), "utf-8")
        entries.append({"image": f"{shard}/{name}.{ending}", "annotation": f"{shard}/{name}.json"})
    entries.reverse()
    (root / "data.json").write_text(json.dumps(entries))
    return root


def pack(root: Path, target: Path) -> Path:
    """The same as tars, as the card has them."""
    for folder in ("raw", "captions"):
        (target / folder).mkdir(parents=True)
        for shard in sorted(path for path in (root / folder).iterdir() if path.is_dir()):
            with tarfile.open(target / folder / f"{shard.name}.tar", "w", format=tarfile.GNU_FORMAT) as tar:
                tar.add(shard, shard.name)
    (target / "data.json").write_bytes((root / "data.json").read_bytes())
    return target


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="session")
def tars(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(files, tmp_path_factory.mktemp("tars"))


@pytest.fixture(scope="session")
def indexed(tars: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A converted folder."""
    out = tmp_path_factory.mktemp("converted")
    convert(str(tars), str(out), num_proc=1, quiet=True)
    return str(out)


WORDS = ["[PAD]", "[UNK]", "Generate", "an", "image", "image.", ":", "picture", "number", "<img>", *map(str, range(10))]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A word tokenizer that AutoTokenizer loads, made on the spot."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    model = tokenizers.models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    folder = str(tmp_path_factory.mktemp("tokenizer"))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def make_files() -> Callable[[Path, int], Path]:
    return write_files
