"""DistributedDataParallel under torchrun: every row once an epoch over all ranks, and mid-epoch resuming.

    torchrun --standalone --nproc-per-node 2 examples/train_ddp.py work/out [--epochs 2] [--checkpoint work/ddp.pt]

Stop it whenever you like and run it again, with another number of processes if you want.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from train_tiny import TinyFlow, collate, flow_loss, tiny_dataset

from builder.mm import EpochSampler

BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10**9, help="stop after so many, as a time limit would")
    parser.add_argument("--checkpoint")
    arguments = parser.parse_args()

    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")  # first: the sampler asks it for its rank
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    dataset = tiny_dataset(arguments.path)
    sampler = EpochSampler(dataset, seed=0)
    loader = DataLoader(dataset, batch_size=BATCH, sampler=sampler, collate_fn=collate, num_workers=1)
    model = DistributedDataParallel(TinyFlow().to(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    first = steps = 0
    if arguments.checkpoint and os.path.exists(arguments.checkpoint):
        saved = torch.load(arguments.checkpoint, map_location=device, weights_only=True)
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        sampler.load_state_dict(saved["sampler"])
        first = saved["sampler"]["epoch"]
    for epoch in range(first, arguments.epochs):
        sampler.set_epoch(epoch)  # no effect in the epoch that was loaded
        losses, state = [], sampler.state_dict()
        for batches, batch in enumerate(loader, 1):
            loss = flow_loss(model, {name: value.to(device) for name, value in batch["data"].items()})
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            state = sampler.state_after(batches, BATCH)  # not state_dict(): workers have drawn rows ahead
            steps += 1
            if steps == arguments.steps:
                break
        shown = torch.tensor(float(len(losses)))
        dist.all_reduce(shown)
        if dist.get_rank() == 0:
            mean = sum(losses) / max(1, len(losses))
            print(f"epoch {epoch}: {int(shown)} batches on {dist.get_world_size()} ranks, loss {mean:.4f}", flush=True)
            if arguments.checkpoint:
                saved = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "sampler": state}
                torch.save(saved, arguments.checkpoint)
        if steps == arguments.steps:
            break
    dist.barrier()  # a gloo group that is destroyed while its last all_reduce ends can hang (torch 2.13)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
