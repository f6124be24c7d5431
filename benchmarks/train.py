"""From index to tensor: upstream's CaptionDataset over extracted files, and ours, in one run.

    python benchmarks/train.py PHOTOS [--image-size 512] [--scale 1] [--rounds 3] [--rows 6000000]

PHOTOS is a folder of JPEG files. They are laid out as a source, extracted (for upstream) and converted (for us), on the
same disk; ``--scale 2`` makes each twice as wide and high before. Batches of 32, put together by collate_func_gen. One
process and one thread each, processor time (which neighbours on the machine disturb less than wall time); the ways take
turns within every round, and the medians of the rounds are printed. Then the parts of the fast way, the decoders alone,
and the costs of beginning: constructing the dataset over an index of ``--rows`` rows, and the first index of a sampler.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks.results import Results, add_json
from builder.base.arrays import number_array
from builder.base.schema import INDEX, INDEX_BATCH_ROWS, INDEX_ROW
from builder.conversion.convert import convert
from builder.store.index import write_index
from builder.store.output import OutputFile

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from builder.mm import CaptionDataset, collate_func_gen
    from builder.mm.transforms import Target, crop_fast, open_fast

TEMPLATE = {
    "GENERATION": "Generate an image: {input}",
    "CFG": "Generate an image.",
    "INSTRUCTION": "{input}",
    "IMG_START_TOKEN": "<img>",
}


class Letters:
    """A tokenizer that costs next to nothing: the same for both."""

    def encode(self, text: str, return_tensors: str, add_special_tokens: bool) -> torch.Tensor:
        return torch.tensor([list(text.encode()[:128])])


def upstream(root: Path, entry: dict[str, str], image_size: int, tokenizer: Letters) -> dict[str, Any]:
    """One sample by upstream's algorithm."""
    image: Image.Image = Image.open(os.path.join(root, "raw", entry["image"]))
    image = image.convert("RGB").convert("RGB")
    width, height = image.size
    if width > height:
        left = random.randint(0, width - height)
        image = image.crop((left, 0, left + height, height))
    else:
        upper = random.randint(0, height - width)
        image = image.crop((0, upper, width, upper + width))
    pixels = torch.from_numpy(np.array(image.resize((image_size, image_size)))).float()
    pixels = 2 * (pixels / 255) - 1
    with open(os.path.join(root, "captions", entry["annotation"])) as file:
        caption = json.load(file)["re_caption"]
    unconditional = random.uniform(0, 1) < 0.1
    prompt = TEMPLATE["CFG"] if unconditional else TEMPLATE["GENERATION"].format(input=caption.strip())
    prompt = TEMPLATE["INSTRUCTION"].format(input=prompt) + TEMPLATE["IMG_START_TOKEN"]
    ids = tokenizer.encode(prompt, return_tensors="pt", add_special_tokens=True)[0][:128]
    return {"pixel_values": pixels.permute(2, 0, 1), "input_ids": ids}


def lay_out(photos: Sequence[Path], root: Path) -> list[dict[str, str]]:
    """The photographs as files and as tars; returns the entries of data.json."""
    entries = []
    for folder in ("raw", "captions"):
        for layout in ("files", "tars"):
            (root / layout / folder).mkdir(parents=True)
        (root / "files" / folder / "00000").mkdir()
    for number, photo in enumerate(photos):
        name = f"00000/{number:09d}"
        (root / "files" / "raw" / f"{name}.jpg").write_bytes(photo.read_bytes())
        (root / "files" / "captions" / f"{name}.json").write_text(
            json.dumps({"re_caption": f"a photograph, {photo.stem} " * 8})
        )
        entries.append({"image": f"{name}.jpg", "annotation": f"{name}.json"})
    for folder in ("raw", "captions"):
        with tarfile.open(root / "tars" / folder / "00000.tar", "w") as tar:
            tar.add(root / "files" / folder / "00000", "00000")
    (root / "tars" / "data.json").write_text(json.dumps(entries))
    return entries


BATCH = 32


def enlarged(photos: Sequence[Path], root: Path, scale: int) -> list[Path]:
    made = []
    (root / "photos").mkdir()
    for photo in photos:
        image = Image.open(photo).convert("RGB")
        made.append(root / "photos" / f"{photo.stem}.jpg")
        image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC).save(made[-1], quality=88)
    return made


def milliseconds(load: Callable[[Sequence[int]], Any], order: Sequence[int]) -> float:
    """Processor time of one sample."""
    start = time.process_time()
    for first in range(0, len(order), BATCH):
        load(order[first : first + BATCH])
    return (time.process_time() - start) / len(order) * 1e3


def together(dataset: CaptionDataset) -> Callable[[Sequence[int]], Any]:
    """As torch's loader asks for a batch."""
    return lambda numbers: collate_func_gen(dataset.__getitems__(numbers))


def samples(photos: Sequence[Path], root: Path, image_size: int, rounds: int, results: Results) -> None:
    entries = lay_out(photos, root)
    convert(str(root / "tars"), str(root / "out"), num_proc=1, quiet=True)
    options: dict[str, Any] = {"cap_source": "re_caption", "tokenizer": Letters(), "prompt_template": TEMPLATE}
    options |= {"image_size": image_size, "min_image_size": 10}
    exact = CaptionDataset(root / "out", **options)
    exact_u8 = CaptionDataset(root / "out", out="uint8", **options)
    fast = CaptionDataset(root / "out", imdecode_backend="cv2", out="uint8", **options)
    tokenizer = Letters()
    ways: dict[str, Callable[[Sequence[int]], Any]] = {
        "upstream's algorithm, extracted files": lambda numbers: collate_func_gen(
            [upstream(root / "files", entries[number], image_size, tokenizer) for number in numbers]
        ),
        "ours, bit-identical": together(exact),
        "ours, bit-identical, out='uint8'": together(exact_u8),
        "ours, imdecode_backend='cv2', out='uint8'": together(fast),
    }
    count = min(len(exact), len(entries))
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):  # the first warms up
        order = random.Random(turn).sample(range(count), count)
        for name, load in ways.items():
            spent = milliseconds(load, order)
            if turn:
                taken[name].append(spent)
    base = statistics.median(next(iter(taken.values())))
    for name, times in taken.items():
        middle = statistics.median(times)
        results.add(name, {"ms a sample": middle, "× as fast": base / middle})
    parts(fast, count, middle, results)


def parts(fast: CaptionDataset, count: int, whole: float, results: Results) -> None:
    """Where the time of the fast way goes: ``whole`` ms a sample."""
    import simplejpeg

    target = Target(fast.image_size)
    source = fast._samples()
    contents = [sample.image for sample in source[list(range(min(count, 200)))]]
    decoded = [open_fast(content, fast.min_image_size, target) for content in contents]
    least = {"min_width": 1, "min_height": 1, "min_factor": 8}
    spent = {
        "reading": best(lambda rows: source[rows], [list(range(len(contents)))]) / len(contents),
        "decoding": best(lambda content: open_fast(content, fast.min_image_size, target), contents),
        "crop, resampling, planes": best(lambda image: crop_fast(image, target), decoded),
    }
    spent["the rest: text, collating, memory"] = whole - sum(spent.values())
    for name, part in spent.items():
        results.add(f"fast mode: {name}", {"ms a sample": part})
    entropy = best(lambda content: simplejpeg.decode_jpeg(content, "BGR", strict=False, **least), contents)
    results.add("fast mode: of decoding, the JPEG's bits (at an eighth)", {"ms a sample": entropy})


def best(work: Callable[[Any], Any], items: Sequence[Any]) -> float:
    """Processor time of one item in ms: the best of four rounds."""
    taken = []
    for _ in range(4):
        start = time.process_time()
        for item in items:
            work(item)
        taken.append((time.process_time() - start) / len(items) * 1e3)
    return min(taken)


def decoders(photos: Sequence[Path], results: Results) -> None:
    """Each decoder alone, from bytes in memory to pixels."""
    import cv2
    import simplejpeg

    def half(data: bytes) -> Any:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        least = {"min_height": -(-height // 2), "min_width": -(-width // 2), "min_factor": 2}
        return simplejpeg.decode_jpeg(data, "BGR", strict=False, **least)

    ways: dict[str, Callable[[bytes], Any]] = {
        "Pillow": lambda data: np.asarray(Image.open(BytesIO(data)).convert("RGB")),
        "OpenCV": lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR),
        "simplejpeg": lambda data: simplejpeg.decode_jpeg(data, "BGR", strict=False),
        "OpenCV, at a half": lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_COLOR_2),
        "simplejpeg, at a half": half,
    }
    with suppress(ImportError, RuntimeError, AttributeError):  # a build for other torch than there is
        from torchvision.io import decode_jpeg

        ways["torchvision"] = lambda data: decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    files = [photo.read_bytes() for photo in photos[:100]]
    for name, decode in ways.items():
        results.add(f"decoding alone, {name}", {"ms a photograph": best(decode, files)})


BEGIN = """
import resource, sys, time, warnings
warnings.simplefilter("ignore")
from builder.mm import CaptionDataset, InfiniteSampler
def now():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6
before = now()
start = time.perf_counter()
dataset = CaptionDataset(sys.argv[1])
spent = time.perf_counter() - start
grown = now() - before
start = time.perf_counter()
sampler = InfiniteSampler(dataset, seed=1)
first = next(iter(sampler))
print(f"constructing over {len(dataset):,} rows: {spent * 1e3:.1f} ms, {grown:.1f} MB more resident")
print(f"first index of the sampler: {(time.perf_counter() - start) * 1e3:.2f} ms")
"""


def begin(rows: int, root: Path) -> None:
    """An index of many short rows, and a process of its own that opens it."""

    def parts() -> Any:
        for first in range(0, rows, INDEX_BATCH_ROWS):
            numbers = np.arange(first, min(first + INDEX_BATCH_ROWS, rows))
            keys = [f"{n // 4000:05d}/{n:09d}" for n in numbers.tolist()]
            texts = {"key": keys, "path": [f"{key}.jpg" for key in keys], "caption": ["a caption"] * len(keys)}
            texts |= {"annotation_path": [f"{key}.json" for key in keys], "annotation": ["{}"] * len(keys)}
            columns = {field.name: _column(field, texts, numbers) for field in INDEX_ROW}
            columns["key_hash"] = number_array(numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
            yield pa.table(columns)

    (root / "many" / "meta").mkdir(parents=True)
    path = str(root / "many" / INDEX)
    write_index(OutputFile(path), "..", [], parts)
    subprocess.run([sys.executable, "-c", BEGIN, str(root / "many")], check=True)


def _column(field: pa.Field, texts: dict[str, list[str]], numbers: Any) -> pa.Array:
    if field.name in texts:
        return pa.array(texts[field.name], field.type)
    if pa.types.is_integer(field.type):
        return pa.array(np.full(len(numbers), 512), field.type)
    return pa.nulls(len(numbers), field.type)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--scale", type=int, default=1, help="make the photographs so many times as wide and high")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=6_000_000, help="0 leaves the second part out")
    parser.add_argument("--tmp", type=Path, help="where to work (default: the system's)")
    add_json(parser)
    arguments = parser.parse_args()
    results = Results()
    torch.set_num_threads(1)
    import cv2

    cv2.setNumThreads(1)
    photos = sorted(path for path in arguments.photos.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    with tempfile.TemporaryDirectory(dir=arguments.tmp) as work:
        if arguments.scale > 1:
            photos = enlarged(photos[:120], Path(work), arguments.scale)
        samples(photos, Path(work), arguments.image_size, arguments.rounds, results)
        decoders(photos, results)
        results.finish(arguments.json)
        if arguments.rows:
            begin(arguments.rows, Path(work))
    print(f"peak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")


if __name__ == "__main__":
    main()
