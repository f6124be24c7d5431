"""mmengine's Runner, its FlexibleRunner, and xtuner's TrainLoop: upstream's OpenUni config in miniature.

    python examples/train_mmengine.py work/out [--steps 12] [--flexible] [--xtuner] [--resume]

Checkpoints go to work_dirs/tiny. ``--resume`` goes on from the last one, with the very next rows.
"""

# ruff: noqa: C408  (dict(…) is how configs of mmengine are written)

from __future__ import annotations

import argparse
import os
from typing import Any

from mmengine.model import BaseModel
from mmengine.runner import FlexibleRunner, Runner
from train_tiny import PAD, TinyFlow, flow_loss, tiny_dataset

from builder.mm import InfiniteSampler, NormalizePixelsHook, SamplerStateHook, collate_func_gen


class Flow(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.flow = TinyFlow()

    def forward(self, data: Any, data_samples: Any = None, mode: str = "loss") -> Any:
        return {"loss": flow_loss(self.flow, data)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--steps", type=int, default=12, help="in all")
    parser.add_argument("--work-dir", default="work_dirs/tiny")
    parser.add_argument("--flexible", action="store_true", help="FlexibleRunner, as for DeepSpeed and FSDP")
    parser.add_argument("--xtuner", action="store_true", help="xtuner's TrainLoop in place of IterBasedTrainLoop")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # mmengine's checkpoints hold more than tensors

    loader = dict(
        batch_size=4,
        num_workers=0,
        dataset=tiny_dataset(arguments.path),
        sampler=dict(type=InfiniteSampler, shuffle=True),
        collate_fn=dict(type=collate_func_gen, pad_index=PAD),
    )
    loop: dict[str, Any] = dict(by_epoch=False, max_iters=arguments.steps)
    if arguments.xtuner:
        from xtuner.engine.runner import TrainLoop

        loop = dict(type=TrainLoop, max_iters=arguments.steps)
    options: dict[str, Any] = dict(
        model=Flow(),
        work_dir=arguments.work_dir,
        train_dataloader=loader,
        train_cfg=loop,
        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=2e-3)),
        default_hooks=dict(
            checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=4),
            logger=dict(type="LoggerHook", interval=4),
        ),
        custom_hooks=[dict(type=SamplerStateHook), dict(type=NormalizePixelsHook)],
        resume=arguments.resume,
        log_processor=dict(by_epoch=False),
        randomness=dict(seed=0),
    )
    if arguments.flexible:
        runner = FlexibleRunner(strategy=dict(type="SingleDeviceStrategy"), **options)
    else:
        runner = Runner(**options)
    runner.train()


if __name__ == "__main__":
    main()
