"""Clients of the test Hub as processes of their own, since huggingface_hub reads HF_ENDPOINT when it is imported."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any

from tests.hub.server import WRITE_TOKEN, HubServer
from tests.hub.wire import Record

PROJECT = Path(__file__).parents[2]

_LEAVE = """
import os, sys
sys.stdout.flush()
os._exit(0)
"""
"""How a client that imports datasets ends. datasets gives pyarrow its file objects, and pyarrow's threads read them
ahead. A thread that lets go of one while Python exits crashes the process ("terminate called without an active
exception"). Other clients end as Python does: our own reading must not crash one."""


def client_env(
    server: HubServer, tmp_path: Path, *, token: str | None = WRITE_TOKEN, xet: bool = False
) -> dict[str, str]:
    """The environment of a client with a home of its own under `tmp_path` (nothing cached, nobody logged in)."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    env |= {
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(tmp_path / "hf-home"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "HF_XET_TELEMETRY_ENABLED": "0",
        "LAION6M_CACHE": str(tmp_path / "laion6m-cache"),
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(PROJECT),
    }
    if not xet:
        env["HF_HUB_DISABLE_XET"] = "1"
    if token is not None:
        env["HF_TOKEN"] = token
    return env


def run_client(
    server: HubServer,
    code: str | list[str],
    python: str = sys.executable,
    *,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 280,
    kill_at: int | str | None = None,
    kill_when: str = "response",
) -> subprocess.CompletedProcess[str]:
    """Run Python code, or `python *code` where it is a list, in a fresh home unless `env` says else.

    With `kill_at`, the client and its children get SIGKILL at their n-th request (from 1), or at the first one to a
    route that is named: when its work is done and the answer not yet sent ("response"), or when it arrives, before
    anything is done ("request"). The return code is then -9.
    """
    words = ["-c", dedent(code)] if isinstance(code, str) else code
    command = [python, *(_left(word) if before == "-c" else word for before, word in pairwise(["", *words]))]
    first = len(server.requests())
    with (
        tempfile.TemporaryDirectory(prefix="client-", ignore_cleanup_errors=True) as home,
        subprocess.Popen(
            command,
            env=client_env(server, Path(home)) if env is None else env,
            cwd=cwd or home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process,
    ):

        def kill(record: Record) -> None:
            if record.route == kill_at or (isinstance(kill_at, int) and record.index - first >= kill_at):
                _kill(process)
                raise ConnectionAbortedError("the client was killed")

        hook = f"on_{kill_when}"
        before = getattr(server, hook)
        if kill_at is not None:
            setattr(server, hook, kill)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            setattr(server, hook, before)
            _kill(process)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _left(code: str) -> str:
    """The code, with the end that a client of datasets needs."""
    return code + _LEAVE if re.search(r"^ *(import|from) .*\bdatasets\b", code, re.MULTILINE) else code


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):  # it has ended, and its children with it
        os.killpg(process.pid, signal.SIGKILL)


def run_ok(server: HubServer, code: str | list[str], python: str = sys.executable, **options: Any) -> str:
    """`run_client`, and its output; what it wrote to stderr is in the failure if it did not end well."""
    done = run_client(server, code, python, **options)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
