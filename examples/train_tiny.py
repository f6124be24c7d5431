"""A training run in miniature: a converted folder (or an index) in, a falling loss out. Needs torch, nothing else.

    laion6m demo work                        makes a small source and converts it to work/out
    python examples/train_tiny.py work/out [--steps 30] [--checkpoint work/tiny.pt]

The model learns to turn noise into 32 × 32 images by rectified flow, told by the caption's bytes which. Run it again
with the same checkpoint and more steps, and it goes on with the very next rows.
"""

from __future__ import annotations

import argparse
import os
import random
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from builder.mm import CaptionDataset, InfiniteSampler, collate_func_gen, normalize_pixels

TEMPLATE = {
    "GENERATION": "Generate an image: {input}",
    "CFG": "Generate an image.",
    "INSTRUCTION": "{input}",
    "IMG_START_TOKEN": "",
}
PAD = 256


class Bytes:
    """A tokenizer without a vocabulary: one token for each byte."""

    def encode(self, text: str, return_tensors: str, add_special_tokens: bool) -> Tensor:
        return torch.tensor([list(text.encode())])


class TinyFlow(nn.Module):
    """Predicts the velocity from image to noise, of x_t (b 3 32 32), t (b, 0 to 1) and a caption (b n, padded)."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.words = nn.Embedding(PAD + 1, width)
        self.time = nn.Linear(1, width)
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(
            nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, width, 4, stride=2, padding=1),
            nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(4, width), nn.SiLU(), nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width, 3, padding=1), nn.SiLU(),
        )  # fmt: skip
        self.last = nn.Conv2d(2 * width, 3, 3, padding=1)
        nn.init.zeros_(self.last.weight)

    def forward(self, noisy: Tensor, time: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[..., None].float()
        caption = (self.words(input_ids) * mask).sum(1) / mask.sum(1).clamp(min=1)
        condition = (caption + self.time(time[:, None]))[..., None, None]
        features = self.first(noisy) + condition
        return self.last(torch.cat([self.body(features), features], dim=1))


def tiny_dataset(path: str) -> CaptionDataset:
    return CaptionDataset(
        path,
        cap_source="re_caption",
        tokenizer=Bytes(),
        prompt_template=TEMPLATE,
        image_size=32,
        min_image_size=16,
        out="uint8",
        on_error="skip",
    )


collate = partial(collate_func_gen, pad_index=PAD)


def flow_loss(model: nn.Module, data: dict[str, Tensor]) -> Tensor:
    """Of a batch's ``data``: how far the predicted velocity is from the true one, at a random time for each image."""
    images = normalize_pixels(data["pixel_values"])
    time = torch.rand(len(images), device=images.device)
    noise = torch.randn_like(images)
    mixed = torch.lerp(images, noise, time[:, None, None, None])
    return (model(mixed, time, data["input_ids"], data["attention_mask"]) - (noise - images)).square().mean()


def train(path: str, steps: int, checkpoint: str | None = None, batch_size: int = 8) -> list[float]:
    """Trains up to step ``steps``; returns the loss of each step done by this call."""
    random.seed(0)
    torch.manual_seed(0)
    dataset = tiny_dataset(path)
    sampler = InfiniteSampler(dataset, seed=0)
    model = TinyFlow()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    done = 0
    if checkpoint and os.path.exists(checkpoint):
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        sampler.load_state_dict(saved["sampler"])
        done = saved["step"]
    loader = DataLoader(dataset, batch_size=batch_size, sampler=sampler, collate_fn=collate)
    losses = []
    for batch in islice(loader, steps - done):
        loss = flow_loss(model, batch["data"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if checkpoint:
        state = sampler.state_after(len(losses), batch_size)
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "sampler": state}
        torch.save({**saved, "step": done + len(losses)}, checkpoint)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="a converted folder, or a source with an index")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--checkpoint", help="file to go on from, and to save to")
    arguments = parser.parse_args()
    for step, loss in enumerate(train(arguments.path, arguments.steps, arguments.checkpoint)):
        print(f"step {step}: loss {loss:.4f}")


if __name__ == "__main__":
    main()
