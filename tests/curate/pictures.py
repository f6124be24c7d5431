"""Pictures made in code, for fingerprints to tell apart: busy ones like photographs, plain ones, and copies of them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from builder.base.options import ConvertOptions, SamplePolicy
from builder.conversion.convert import convert
from builder.conversion.index import index


def photo(seed: int, width: int = 160, height: int = 120) -> Image.Image:
    """As in photographs, large shapes are strong and small ones weak: noise of amplitude 1 / frequency."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(rng.normal(size=(height, width, 3)), axes=(0, 1))
    falloff = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width)
    pixels = np.fft.irfft2(spectrum / np.maximum(falloff, 1)[..., None], s=(height, width), axes=(0, 1))
    pixels = 128 + 50 * (pixels - pixels.mean()) / pixels.std() + rng.uniform(-25, 25, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def crop(image: Image.Image, share: float) -> Image.Image:
    """``share`` of each side off, half of it at each end."""
    width, height = int(image.width * share / 2), int(image.height * share / 2)
    return image.crop((width, height, image.width - width, image.height - height))


COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "half the size": lambda image: encoded(image.resize((image.width // 2, image.height // 2))),
    "quality 30": lambda image: encoded(image, quality=30),
    "brighter": lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.2)),
    "more contrast": lambda image: encoded(ImageEnhance.Contrast(image).enhance(1.3)),
    "black and white": lambda image: encoded(image.convert("L")),
    "PNG": lambda image: encoded(image, "PNG"),
    "WebP": lambda image: encoded(image, "WEBP", quality=60),
    "GIF": lambda image: encoded(image, "GIF"),
    "CMYK": lambda image: encoded(image.convert("CMYK")),
    "another shape": lambda image: encoded(image.resize((image.width, image.width))),
    "mirrored": lambda image: encoded(ImageOps.mirror(image)),
    "cropped by 5 %": lambda image: encoded(crop(image, 0.05)),
    "mirrored and cropped": lambda image: encoded(crop(ImageOps.mirror(image), 0.05)),
}

PLAIN: dict[str, Image.Image] = {
    "white": Image.new("RGB", (160, 120), "white"),
    "black": Image.new("RGB", (160, 120), "black"),
    "grey": Image.new("L", (160, 120), 128),
    "almost grey": Image.fromarray(np.random.default_rng(0).integers(126, 130, (120, 160), dtype=np.uint8)),
    "red": Image.new("RGB", (160, 120), "red"),
    "one pixel": Image.new("RGB", (1, 1), "blue"),
    "transparent": Image.new("RGBA", (160, 120), (10, 200, 30, 0)),
    "to the right": Image.fromarray(np.tile(np.linspace(0, 255, 160).astype(np.uint8), (120, 1))),
    "to the left": Image.fromarray(np.tile(np.linspace(255, 0, 160).astype(np.uint8), (120, 1))),
    "downwards": Image.fromarray(np.tile(np.linspace(0, 255, 120).astype(np.uint8)[:, None], (1, 160))),
    "two halves": Image.fromarray(np.repeat(np.array([[40, 200]], dtype=np.uint8), 80, axis=1).repeat(120, axis=0)),
    "one row": Image.fromarray(np.linspace(0, 255, 160).astype(np.uint8)[None]),
    "one column": Image.fromarray(np.linspace(0, 255, 160).astype(np.uint8)[:, None]),
}


def dataset(folder: Path, images: dict[str, bytes], form: str = "parquet") -> Path:
    """A converted folder whose rows are these images, in this order; ``form`` "index": an index over its tars."""
    for side in ("raw", "captions"):
        (folder / "src" / side).mkdir(parents=True)
        with tarfile.open(folder / "src" / side / "00000.tar", "w") as tar:
            for name, image in images.items():
                path = f"00000/{name}" if side == "raw" else f"00000/{Path(name).stem}.json"
                data = image if side == "raw" else json.dumps({"caption": f"a picture, {name}"}).encode()
                member = tarfile.TarInfo(path)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    entries = [{"image": f"00000/{name}", "annotation": f"00000/{Path(name).stem}.json"} for name in images]
    (folder / "src" / "data.json").write_text(json.dumps(entries))
    policy = SamplePolicy(max_aspect_ratio=0)
    if form == "index":
        index(folder / "src", folder / "out", ConvertOptions(policy=policy), num_proc=1, quiet=True)
    else:
        convert(folder / "src", folder / "out", ConvertOptions(form, policy), num_proc=1, quiet=True)
    return folder / "out"
