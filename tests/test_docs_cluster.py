"""The page on clusters: its commands parse, and its scripts do what it says they do, with Slurm played by stubs."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from builder.base.options import ConvertOptions
from builder.cli.commands import read
from builder.conversion.convert import convert
from stress.common import receipts, session_of
from tests.outputs import ROOT, environment, make_large_source, output_bytes, wait_until

PAGE = (ROOT / "docs" / "howto" / "cluster.md").read_text()
SMALL = ConvertOptions(max_shard_size=1_000_000)


def blocks(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    assert found
    return found


def commands() -> Iterator[str]:
    """All that the page has anybody run of ours."""
    text = "\n".join(re.findall(r"```\w*\n(.*?)```", PAGE, flags=re.DOTALL)).replace("\\\n", " ")
    for line in text.splitlines():
        for found in re.findall(r"(?<![\w./-])laion6m (?:convert|index|verify|extract|push)\b[^'&|#]*", line):
            yield found.strip()


def _parse(argv: list[str]) -> argparse.Namespace:
    return read(argv)[1]


def test_the_page_has_a_command_for_each_way() -> None:
    found = list(commands())
    assert len(found) >= 7
    assert {"--start", "--engine", "--address", "s3://bucket/converted"} <= set(shlex.split(" ".join(found)))


@pytest.mark.parametrize("command", list(commands()))
def test_each_command_parses(command: str) -> None:
    for name, value in {"$((first + 50))": "100", "$first": "50", "$SLURM_CPUS_PER_TASK": "8"}.items():
        command = command.replace(name, value)
    _parse(shlex.split(command)[1:])


@pytest.mark.parametrize("name", ["index", "verify", "extract"])
def test_what_the_page_says_takes_an_engine_does(name: str) -> None:
    arguments = _parse([name, "here", *(["there"] if name == "extract" else []), "--engine", "ray"])
    assert (arguments.engine, arguments.address) == ("ray", None)


def test_the_ray_job_is_whole() -> None:
    [text] = blocks("yaml")
    job = yaml.safe_load(text)
    spec = job["spec"]["rayClusterSpec"]
    [image] = re.findall(r"FROM rayproject/ray:([\d.]+)", PAGE)
    assert (job["apiVersion"], job["kind"], spec["rayVersion"]) == ("ray.io/v1", "RayJob", image)
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    containers = [container for group in groups for container in group["template"]["spec"]["containers"]]
    assert len({container["image"] for container in containers}) == 1, "all have the same versions"
    assert all(isinstance(value, str) for group in groups for value in group["rayStartParams"].values())


class Slurm:
    """What the scripts call of Slurm, played on this machine, with /shared in a folder of the test's own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.shared = folder / "shared"
        scripts = folder / "bin"
        scripts.mkdir()
        here = f"{sys.executable} -m"
        for name, lines in {
            "laion6m": f'exec {here} builder "$@" --max-shard-size 1MB',
            "ray": f'exec {here} ray.scripts.scripts "$@"',
            "python": f'exec {sys.executable} "$@"',
            "scontrol": "echo first; echo second",
            "hostname": "echo 127.0.0.2 fe80::1",
            # options first, then what to run; Ray takes a session's folder from the head, which is told where
            "srun": f"""echo "$*" >> {folder}/calls
while [ "${{1#-}}" != "$1" ]; do [ "$1" = -w ] && shift; shift; done
case "$*" in
  *--head*) exec "$@" --temp-dir {folder}/r ;;
  *"ray start"*) exec "$@" --node-ip-address 127.0.0.3 ;;
  *) exec "$@" ;;
esac""",
        }.items():
            path = scripts / name
            path.write_text(f"#!/bin/bash\n{lines}\n")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        (self.shared / "venv" / "bin").mkdir(parents=True)
        (self.shared / "venv" / "bin" / "activate").touch()
        for name, value in {**environment(leaks=False), "PATH": f"{scripts}:{os.environ['PATH']}"}.items():
            monkeypatch.setenv(name, value)

    def run(self, script: str, **variables: object) -> subprocess.CompletedProcess[str]:
        """As a job: when it ends, all that it started is ended."""
        words = {**os.environ, **{name: str(value) for name, value in variables.items()}}
        text = script.replace("/shared", str(self.shared))
        with subprocess.Popen(
            ["bash", "-c", text],
            env=words,
            stdout=(log := open(self.folder / "log", "w+")),
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                code = process.wait(timeout=200)
            finally:
                for left in session_of(process.pid):
                    os.kill(left, 9)
                wait_until(lambda: not session_of(process.pid), 30)
        with log:
            log.seek(0)
            return subprocess.CompletedProcess(text, code, log.read(), None)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return Slurm(tmp_path, monkeypatch)


@pytest.mark.slow
def test_the_array_of_slices_ends_in_one_output_and_the_last_run_finds_nothing_to_do(
    slurm: Slurm, tmp_path: Path
) -> None:
    script, after = blocks("bash")[:2]
    make_large_source(slurm.shared / "laion6m", tars=3)
    convert(str(slurm.shared / "laion6m"), str(tmp_path / "local"), SMALL, num_proc=1, quiet=True)
    out = slurm.shared / "converted"
    assert "* 50" in script
    assert "+ 50" in script
    script = script.replace("* 50", "* 1").replace("+ 50", "+ 1")  # slices of one tar
    for task in (2, 0, 3, 1):
        ran = slurm.run(script, SLURM_ARRAY_TASK_ID=task, SLURM_CPUS_PER_TASK=1)
        assert ran.returncode == (2 if task == 3 else 0), ran.stdout  # the fourth is behind the end of the source
    assert output_bytes(out) == output_bytes(tmp_path / "local")
    made = receipts(out)
    for name in ("meta", "README.md"):  # what spans the shards is made again by the last run
        subprocess.run(["rm", "-r", str(out / name)], check=True)
    [last] = re.findall(r"--wrap='(.*)'", after)
    ran = slurm.run(last)
    assert ran.returncode == 0, ran.stdout
    assert "everything was done before" in ran.stdout
    assert receipts(out) == made
    assert output_bytes(out) == output_bytes(tmp_path / "local")


def test_the_ray_script_starts_a_head_and_the_others_and_converts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'laion6m[ray]'")
    import tempfile

    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as name:  # Ray's sockets need short paths
        slurm = Slurm(Path(name), monkeypatch)
        monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")  # else Ray kills tasks when others fill this machine
        make_large_source(slurm.shared / "laion6m", tars=3)
        convert(str(slurm.shared / "laion6m"), str(tmp_path / "local"), SMALL, num_proc=1, quiet=True)
        ran = slurm.run(
            blocks("bash")[2],
            SLURM_JOB_NODELIST="first,second",
            SLURM_JOB_ID=os.getpid(),
            SLURM_JOB_NUM_NODES=2,
            SLURM_CPUS_PER_TASK=1,
        )
        assert ran.returncode == 0, ran.stdout
        assert output_bytes(slurm.shared / "converted") == output_bytes(tmp_path / "local")
        calls = (slurm.folder / "calls").read_text()
        assert "--nodes=1 --ntasks=1 -w first ray start --head --node-ip-address 127.0.0.2 --port " in calls
        assert "--nodes=1 --ntasks=1 --exclude=first ray start --address 127.0.0.2:" in calls
        assert "Usage: " not in ran.stdout
