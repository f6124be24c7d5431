"""Two Ray nodes convert a source, three times over: left alone; with one node killed halfway, its raylet and workers by
SIGKILL; with the driver killed halfway, and the command run again. Each time every file of OUT has to have the bytes
that ``--engine local`` gives, bookkeeping included.

    python stress/ray_nodes.py [--source FOLDER] [--max-shard-size 20MB] [--scratch DIR]

``begun again`` are shards that were under way on the killed node. ``shards kept`` are those that the second command
found done, and left alone. Without --source a small one is made. The nodes (``ray start``) take the loopback's second
and third address, 127.0.0.2 and 127.0.0.3: for the first, Ray would put the machine's own in its place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from stress.common import ROOT, LostError, arguments, close, receipts, session_of
from tests.outputs import leftovers, make_large_source

HEAD, SECOND = "127.0.0.2", "127.0.0.3"
PATIENCE = 300.0
TRIES = 5
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # else Ray kills tasks when others fill this machine
    "RAY_AUTH_MODE": "token",  # a cluster opens ports; nobody else is to use them
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


def wait_for(true: Callable[[], object], what: str) -> None:
    """Raises LostError."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > deadline:
            raise LostError(f"hang: {what}")
        time.sleep(0.005)


def digests(out: Path) -> dict[str, str]:
    """Of every file of OUT, hidden ones too."""
    found = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        with open(path, "rb") as handle:
            found[path.relative_to(out).as_posix()] = hashlib.file_digest(handle, "sha256").hexdigest()
    return found


class EndedBefore(Exception):  # noqa: N818 - nothing is wrong
    """A run was done before its moment came."""


class Node:
    """One ``ray start --block``, with all that it starts: a session of its own."""

    def __init__(self, folder: Path, address: str, *words: str) -> None:
        self.address = address
        log = folder / f"{address}.log"
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address", address]
        command += ["--num-cpus", "1", "--object-store-memory", "100000000", *words]
        with open(log, "wb") as sink:
            self._process = subprocess.Popen(
                command, env=ENVIRONMENT, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL, start_new_session=True
            )
        try:
            wait_for(lambda: b"Ray runtime started" in log.read_bytes() or self._process.poll() is not None, address)
            if self._process.poll() is not None:
                raise LostError(f"crash: {log.read_text(errors='replace')[-2000:]}")
        except BaseException:
            self.kill()
            raise

    def is_working(self) -> bool:
        """Whether one of its workers is at a task of ours: Ray has them say so in their titles."""
        for process in session_of(self._process.pid):
            with contextlib.suppress(OSError):
                if Path("/proc", str(process), "cmdline").read_bytes().startswith(b"ray::do\0"):
                    return True
        return False

    def kill(self) -> None:
        """As a power cut would: all at once."""
        while left := session_of(self._process.pid):
            for process in left:
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGKILL)
            self._process.poll()
            time.sleep(0.01)
        self._process.wait()


class Trial:
    """A cluster of two, and conversions on it."""

    def __init__(self, scratch: Path, source: Path, max_shard_size: str) -> None:
        self.scratch, self.out = scratch, scratch / "out"
        self.command = [sys.executable, "-m", "builder", "convert", str(source), str(self.out)]
        self.command += ["--max-shard-size", max_shard_size, "--max-reject-ratio", "1", "--json"]
        self.figures: Counter[str] = Counter()
        self._count = 0
        self._finish("--engine", "local")
        self.whole = digests(self.out)
        self.shards = len(receipts(self.out))
        self.figures["shards"] = self.shards
        shutil.rmtree(self.out)

    def run(self) -> None:
        # Ray's sockets have paths of at most 107 bytes
        with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as name:
            for part in (self._undisturbed, self._node_killed, self._driver_killed):
                nodes: list[Node] = []
                started = time.monotonic()
                try:
                    with socket.socket() as probe:
                        probe.bind((HEAD, 0))
                        port = str(probe.getsockname()[1])
                    head = ("--head", "--port", port, "--include-dashboard=false")
                    nodes.append(Node(self.scratch, HEAD, *head, "--temp-dir", name))
                    nodes.append(Node(self.scratch, SECOND, "--address", f"{HEAD}:{port}"))
                    self._run(part, nodes, ["--engine", "ray", "--address", f"{HEAD}:{port}"])
                    self._compare(part.__name__)
                    self.figures["runs"] += 1
                except LostError as error:
                    self.figures["hangs" if str(error).startswith("hang") else "lost"] += 1
                    print(f"LOST {part.__name__}: {error}", flush=True)
                finally:
                    for node in reversed(nodes):
                        node.kill()
                print(f"{part.__name__.strip('_')}: {time.monotonic() - started:.0f} s", flush=True)
                shutil.rmtree(self.out, ignore_errors=True)

    def _run(self, part: Callable[[list[Node], list[str]], None], nodes: list[Node], words: list[str]) -> None:
        for _ in range(TRIES):
            with contextlib.suppress(EndedBefore):
                part([*nodes], words)
                return
            self.figures["ended before"] += 1
            shutil.rmtree(self.out)
        raise LostError(f"its moment did not come in {TRIES} runs")

    def _undisturbed(self, nodes: list[Node], words: list[str]) -> None:
        process, said = self._start(*words)
        both = False
        while process.poll() is None:
            both = both or all(node.is_working() for node in nodes)
            time.sleep(0.01)
        self._judge(process.wait(), said)
        if not both:
            raise EndedBefore

    def _node_killed(self, nodes: list[Node], words: list[str]) -> None:
        process, said = self._start(*words)
        second = nodes.pop()
        self._halfway(process, said, second.is_working)
        second.kill()
        self.figures["nodes killed"] += 1
        self._judge(process.wait(timeout=PATIENCE), said)
        self.figures["begun again"] += said.read_text().count("begun again")

    def _driver_killed(self, _: list[Node], words: list[str]) -> None:
        process, said = self._start(*words)
        self._halfway(process, said)
        process.kill()
        process.wait()
        done = receipts(self.out)
        final = {name: digest for name, digest in digests(self.out).items() if name.startswith("data/")}
        if wrong := [name for name, digest in final.items() if self.whole[name] != digest]:
            raise LostError(f"half a file under a final name: {wrong}")
        if len(done) == self.shards:
            raise EndedBefore
        self.figures["drivers killed"] += 1
        self._finish(*words)
        again = receipts(self.out)
        if any(again[name] != at for name, at in done.items()):
            raise LostError("a finished shard was made again")
        self.figures["shards kept"] += len(done)

    def _halfway(self, process: subprocess.Popen[bytes], said: Path, also: Callable[[], bool] = lambda: True) -> None:
        def true() -> bool:
            if process.poll() is not None:
                if process.returncode:
                    text = said.read_text()
                    raise LostError(f"exit {process.returncode} before it was disturbed, said {text!r}")
                raise EndedBefore
            return len(receipts(self.out)) >= self.shards // 2 and also()

        wait_for(true, "no half of the shards")

    def _start(self, *words: str) -> tuple[subprocess.Popen[bytes], Path]:
        self._count += 1
        said, result = self.scratch / f"stderr-{self._count}", self.scratch / f"stdout-{self._count}"
        with open(said, "wb") as errors, open(result, "wb") as results:
            return subprocess.Popen([*self.command, *words], env=ENVIRONMENT, stdout=results, stderr=errors), said

    def _finish(self, *words: str) -> None:
        process, said = self._start(*words)
        try:
            self._judge(process.wait(timeout=PATIENCE), said)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise LostError("hang: the run that was let through") from None

    def _judge(self, code: int, said: Path) -> None:
        text = said.read_text()
        if "Traceback" in text:
            self.figures["crashes"] += 1
        if code or "Traceback" in text:
            raise LostError(f"exit {code}, said {text!r}")
        result = said.with_name(said.name.replace("stderr", "stdout")).read_text()
        if len(result.splitlines()) != 1 or "rows" not in json.loads(result):
            raise LostError(f"not one JSON object on stdout: {result!r}")

    def _compare(self, name: str) -> None:
        found = digests(self.out)
        wrong = sorted(name for name in found.keys() | self.whole.keys() if found.get(name) != self.whole.get(name))
        if wrong or leftovers(self.out):
            raise LostError(f"{name}: other bytes {wrong}, left {leftovers(self.out)}")
        self.figures["files compared"] += len(found)


def main() -> int:
    options = arguments(
        __doc__ or "",
        900,
        1,
        source=("", "a folder in a layout that convert takes (one is made)"),
        max_shard_size=("20MB", "of the shards (20MB; of the made source 1MB)"),
        scratch=("/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir(), "where OUT goes"),
    )
    figures: Counter[str] = Counter()
    deadline = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory(prefix="ray-nodes-", dir=options.scratch) as name:
        source, size = Path(options.source), options.max_shard_size
        if not options.source:
            source, size = Path(name, "source"), "1MB"
            make_large_source(source, tars=8, per_tar=60)
        for _ in range(options.trials):
            trial = Trial(Path(name), source, size)
            trial.run()
            figures.update(trial.figures)
            if time.monotonic() > deadline:
                break
    words = ("runs", "shards", "files compared", "nodes killed", "begun again", "drivers killed", "ended before")
    return close("ray_nodes", {word: figures[word] for word in (*words, "shards kept", "crashes", "hangs", "lost")})


if __name__ == "__main__":
    sys.exit(main())
