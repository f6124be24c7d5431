"""DeepSpeed: a loader of our own beside the engine, and the sampler's state in each of its checkpoints.

deepspeed examples/train_deepspeed.py work/out [--steps 20] [--checkpoint work/deepspeed]
torchrun --standalone --nproc-per-node 2 examples/train_deepspeed.py work/out      # the same, by torchrun
"""

from __future__ import annotations

import argparse
import os
from itertools import islice

import deepspeed
import torch.distributed as dist
from torch.utils.data import DataLoader
from train_tiny import TinyFlow, collate, flow_loss, tiny_dataset

from builder.mm import InfiniteSampler

BATCH = 4
CONFIG = {
    "train_micro_batch_size_per_gpu": BATCH,
    "optimizer": {"type": "AdamW", "params": {"lr": 2e-3, "torch_adam": True}},
    "zero_optimization": {"stage": 1},
    "zero_allow_untested_optimizer": True,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--steps", type=int, default=20, help="in all")
    parser.add_argument("--checkpoint", help="a folder")
    parser.add_argument("--local_rank", type=int, default=-1, help="given by deepspeed's launcher")
    arguments = parser.parse_args()

    deepspeed.init_distributed()  # first: the sampler asks for its rank
    model = TinyFlow()
    engine, _, _, _ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=CONFIG)
    dataset = tiny_dataset(arguments.path)
    sampler = InfiniteSampler(dataset, seed=0)  # with pipeline or tensor parallelism: rank=, world_size= of the data
    done = 0
    if arguments.checkpoint and os.path.exists(arguments.checkpoint):
        _, saved = engine.load_checkpoint(arguments.checkpoint)
        sampler.load_state_dict(saved["sampler"])
        done = saved["steps"]
    loader = DataLoader(dataset, batch_size=BATCH, sampler=sampler, collate_fn=collate)
    losses = []
    for batch in islice(loader, arguments.steps - done):
        loss = flow_loss(engine, {name: value.to(engine.device) for name, value in batch["data"].items()})
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    state = sampler.state_after(len(losses), BATCH)
    if arguments.checkpoint:
        client_state = {"sampler": state, "steps": done + len(losses)}
        engine.save_checkpoint(arguments.checkpoint, client_state=client_state)
    if dist.get_rank() == 0:
        print(
            f"steps {done} to {done + len(losses)}: loss {losses[0]:.4f} to {losses[-1]:.4f}, next {state['position']}"
        )


if __name__ == "__main__":
    main()
