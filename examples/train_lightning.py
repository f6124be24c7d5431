"""Lightning: our sampler shares out the rows, so that Lightning must not; torchdata's loader has it save the place.

pip install lightning torchdata
python examples/train_lightning.py work/out [--devices 2] [--epochs 2] [--checkpoint work/lightning]
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
from torchdata.stateful_dataloader import StatefulDataLoader
from train_tiny import TinyFlow, collate, flow_loss, tiny_dataset

from builder.mm import EpochSampler

try:
    import lightning.pytorch as lightning
except ImportError:
    import pytorch_lightning as lightning

BATCH = 4


class Flow(lightning.LightningModule):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path, self.model, self.losses = path, TinyFlow(), []

    def train_dataloader(self) -> Any:
        """Called once torch.distributed is set up, which the sampler asks for its rank. Lightning calls set_epoch."""
        dataset = tiny_dataset(self.path)
        sampler = EpochSampler(dataset, seed=0)
        return StatefulDataLoader(dataset, batch_size=BATCH, sampler=sampler, collate_fn=collate, num_workers=0)

    def training_step(self, batch: Any, number: int) -> Any:
        loss = flow_loss(self.model, batch["data"])
        self.losses.append(loss.item())
        return loss

    def on_train_epoch_end(self) -> None:
        mean, count = sum(self.losses) / max(1, len(self.losses)), len(self.losses)
        print(f"epoch {self.current_epoch}: rank {self.global_rank}, {count} batches, loss {mean:.4f}", flush=True)
        self.losses = []

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=-1, help="stop after so many in all, as a time limit would")
    parser.add_argument("--every", type=int, default=5, help="steps between checkpoints")
    parser.add_argument("--checkpoint", help="a folder; last.ckpt in it is gone on from")
    arguments = parser.parse_args()
    keeping = []
    if arguments.checkpoint:
        every = {"every_n_train_steps": arguments.every, "save_last": True, "enable_version_counter": False}
        keeping.append(lightning.callbacks.ModelCheckpoint(arguments.checkpoint, **every))
    trainer = lightning.Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=arguments.devices,
        strategy="ddp" if arguments.devices > 1 else "auto",
        use_distributed_sampler=False,
        max_epochs=arguments.epochs,
        max_steps=arguments.steps,
        callbacks=keeping,
        enable_checkpointing=bool(keeping),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = os.path.join(arguments.checkpoint or "", "last.ckpt")
    trainer.fit(Flow(arguments.path), ckpt_path=last if os.path.exists(last) else None)


if __name__ == "__main__":
    main()
