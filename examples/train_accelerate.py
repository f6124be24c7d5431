"""accelerate, which shares out the batches itself: the sampler is told that it is alone.

accelerate launch --num_processes 2 examples/train_accelerate.py work/out [--epochs 2] [--checkpoint work/accelerate]
"""

from __future__ import annotations

import argparse
import os

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from train_tiny import TinyFlow, collate, flow_loss, tiny_dataset

from builder.mm import EpochSampler

BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10**9, help="stop after so many, as a time limit would")
    parser.add_argument("--checkpoint", help="a folder")
    arguments = parser.parse_args()

    accelerator = Accelerator()
    dataset = tiny_dataset(arguments.path)
    sampler = EpochSampler(dataset, seed=0, rank=0, world_size=1)  # accelerate gives each process its batches
    loader = DataLoader(dataset, batch_size=BATCH, sampler=sampler, collate_fn=collate)
    model = TinyFlow()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    accelerator.register_for_checkpointing(place := Place())
    if arguments.checkpoint and os.path.exists(arguments.checkpoint):
        accelerator.load_state(arguments.checkpoint)
    steps = 0
    for epoch in range(place.sampler.get("epoch", 0), arguments.epochs):
        loader.set_epoch(epoch)  # its own count begins at 0 in each run
        if place.sampler:
            sampler.load_state_dict(place.sampler)
        start, losses = sampler.state_dict(), []
        for batches, batch in enumerate(loader, 1):
            loss = flow_loss(model, batch["data"])
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            losses.append(loss.item())
            place.sampler = sampler.state_after(batches * accelerator.num_processes, BATCH)
            steps += 1
            if steps == arguments.steps:
                break
        shown = accelerator.reduce(torch.tensor(len(losses), device=accelerator.device))
        mean = sum(losses) / max(1, len(losses))
        accelerator.print(f"epoch {start['epoch']}: {int(shown)} batches in all, loss {mean:.4f}", flush=True)
        if arguments.checkpoint:
            accelerator.save_state(arguments.checkpoint)
        if steps == arguments.steps:
            break
        place.sampler = {}
    accelerator.end_training()


class Place:
    """The sampler's state, among what accelerate saves."""

    def __init__(self) -> None:
        self.sampler: dict[str, object] = {}

    def state_dict(self) -> dict[str, object]:
        return {"sampler": self.sampler}

    def load_state_dict(self, state: dict[str, dict[str, object]]) -> None:
        self.sampler = state["sampler"]


if __name__ == "__main__":
    main()
