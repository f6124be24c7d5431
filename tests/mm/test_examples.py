"""The examples run as they are written."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the training side needs torch")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_tiny", ROOT / "examples" / "train_tiny.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_thirty_steps_bring_the_loss_down(tiny: Any, indexed: str) -> None:
    losses = tiny.train(indexed, 30)
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


def test_a_checkpoint_goes_on_with_the_next_rows(tiny: Any, indexed: str, tmp_path: Path) -> None:
    checkpoint = str(tmp_path / "tiny.pt")
    first = tiny.train(indexed, 4, checkpoint)
    rest = tiny.train(indexed, 6, checkpoint)
    assert (len(first), len(rest)) == (4, 2)
    assert torch.load(checkpoint, weights_only=True)["sampler"]["position"] == 6 * 8


@pytest.mark.slow
def test_the_script_says_how_it_goes(indexed: str) -> None:
    command = [sys.executable, "-W", "ignore", str(ROOT / "examples" / "train_tiny.py"), indexed, "--steps", "2"]
    path = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": "/nonexistent"}
    done = subprocess.run(command, capture_output=True, text=True, env=path, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("step 0: loss ")
    assert len(done.stdout.splitlines()) == 2


LAUNCHERS: dict[str, tuple[str, list[str], list[str], str]] = {
    # package it needs: script, options of a run that is stopped, options of the next, what the next then says
    "torch": ("train_ddp.py", ["--steps", "1"], ["--epochs", "1"], "epoch 0: 1 batches on 1 ranks"),
    "accelerate": ("train_accelerate.py", ["--steps", "1"], ["--epochs", "1"], "epoch 0: 1 batches in all"),
    "pytorch_lightning": (
        "train_lightning.py",
        ["--steps", "1", "--every", "1"],
        ["--epochs", "1"],
        "epoch 0: rank 0, 1 batches",
    ),
    "mmengine": ("train_mmengine.py", ["--steps", "4"], ["--steps", "8", "--resume"], "Iter(train) [8/8]"),
    "mmengine, FlexibleRunner": (
        "train_mmengine.py",
        ["--flexible", "--steps", "4"],
        ["--flexible", "--steps", "8", "--resume"],
        "Iter(train) [8/8]",
    ),
    "deepspeed": ("train_deepspeed.py", ["--steps", "1"], ["--steps", "2"], "steps 1 to 2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_launchers_example_trains_and_goes_on_where_it_stopped(name: str, indexed: str, tmp_path: Path) -> None:
    """8 rows in batches of 4."""
    package = name.partition(",")[0]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    script, first, second, says = LAUNCHERS[name]
    place = ["--work-dir" if "mmengine" in name else "--checkpoint", str(tmp_path / "saved")]
    ranks = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "RANK": "0", "LOCAL_RANK": "0"}
    more = {**ranks, "WORLD_SIZE": "1"} if package in ("torch", "deepspeed") else {}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", **more}
    for options in (first, second):
        run = [sys.executable, str(ROOT / "tests" / "torchvision_cpu.py")]
        command = [*run, str(ROOT / "examples" / script), indexed, *options, *place]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=200, cwd=tmp_path, check=False
        )
        assert done.returncode == 0, done.stderr
    assert says in done.stdout + done.stderr


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def test_the_config_gives_batches(tokenizer_folder: str, indexed: str) -> None:
    mmengine = pytest.importorskip("mmengine", reason="mmengine is not installed")
    config = mmengine.Config.fromfile(ROOT / "examples" / "laion6m_512.py")
    config.merge_from_dict(
        {
            "train_dataloader.dataset.data_path": indexed,
            "train_dataloader.dataset.tokenizer.pretrained_model_name_or_path": tokenizer_folder,
            "train_dataloader.num_workers": 0,
            "train_dataloader.batch_size": 2,
            "train_dataloader.pin_memory": False,
        }
    )
    from mmengine.runner import Runner

    batch = next(iter(Runner.build_dataloader(config.train_dataloader, seed=1)))
    assert batch["data"]["pixel_values"].shape == (2, 3, 512, 512)
    assert batch["data"]["input_ids"].shape[0] == 2
