"""Kill conversions at random moments, and see the next run finish them.

    python stress/kill.py [--trials 200] [--seconds 900] [--seed 6]

Each trial kills one to three runs into the same OUT: a worker, the parent, or all of them by SIGKILL; or asks them to
stop by SIGINT or SIGTERM. Every time: no process is left within seconds, a dead worker is an error that names its tar,
whatever has a final name is whole, a run that says it is done has made all of the output; and the run that is let
through ends with the bytes of one that nobody disturbed, without touching the shards that were finished, and leaves
nothing temporary. ``kills`` are those of which a run ended; the others came when it was done.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import builder.conversion.convert  # noqa: F401 - before the forks, so that what is killed is a conversion, not its imports
from builder.cli.commands import main as cli
from builder.cli.commands import take_signals
from stress.common import LostError, account, arguments, close, half_named, receipts, session_of, shard_source
from tests.outputs import leftovers, output_bytes

SHARDS, PER_SHARD = 8, 5
PATIENCE = 60.0
WAYS = ("worker", "parent", "all", "sigint", "sigterm")


class Run:
    """A conversion in a session of its own, forked from here so that Python need not start for each."""

    def __init__(self, command: list[str], words: Path) -> None:
        self.words = words
        self.pid = os.fork()
        if self.pid:
            return
        code = 70
        try:  # all of it: a child that an interrupt led out of here would go on as a second parent
            os.setsid()
            handle = os.open(words, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(handle, 2)
            take_signals()
            code = cli(command)
        except KeyboardInterrupt:  # before the command line has its own way with them
            code = 130
        except BaseException:  # noqa: BLE001 - what no user should see
            traceback.print_exc()
        finally:
            os._exit(code)

    def wait(self) -> int:
        """The exit code, negative for a signal. Raises LostError for a hang, and for processes that stay."""
        deadline = time.monotonic() + PATIENCE
        while True:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                break
            if time.monotonic() > deadline:
                self.end()
                raise LostError("hang: the parent does not end")
            time.sleep(0.002)
        while left := session_of(self.pid):
            if time.monotonic() > deadline:
                self.end()
                raise LostError(f"hang: {len(left)} processes stay")
            time.sleep(0.01)
        return os.waitstatus_to_exitcode(status)

    def end(self) -> None:
        for process in session_of(self.pid):
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)

    def kill(self, way: str, rng: random.Random) -> None:
        """Kill, or ask to stop; nothing where all has ended."""
        with contextlib.suppress(ProcessLookupError):
            if way == "worker":
                while not (workers := [process for process in session_of(self.pid) if process != self.pid]):
                    if self.pid not in session_of(self.pid):
                        return
                os.kill(rng.choice(workers), signal.SIGKILL)
            elif way == "parent":
                os.kill(self.pid, signal.SIGKILL)
            elif way == "all":
                os.killpg(self.pid, signal.SIGKILL)
            elif way == "sigint":
                os.killpg(self.pid, signal.SIGINT)
            else:
                os.kill(self.pid, signal.SIGTERM)


class Trials:
    def __init__(self, scratch: Path, seed: int) -> None:
        self.scratch, self.rng = scratch, random.Random(seed)
        self.source = shard_source(scratch / "source", SHARDS, PER_SHARD)
        self.out, self.words = scratch / "out", scratch / "stderr"
        self.temporary = scratch / "tmp"  # where the system keeps temporary files, for the runs
        self.temporary.mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.temporary)
        self.figures: Counter[str] = Counter()
        self.ways: Counter[str] = Counter()
        self._finish()
        self.whole = output_bytes(self.out)
        counted = account(self.out, SHARDS * PER_SHARD)
        self.figures["rows"], self.figures["rejects"] = counted.rows, counted.rejects
        shutil.rmtree(self.out)
        started = time.monotonic()  # of one with all modules read
        self._finish(2)
        self.seconds = time.monotonic() - started
        shutil.rmtree(self.out)

    def command(self, num_proc: int) -> list[str]:
        words = f"convert {self.source} {self.out} --max-shard-size 1MB --max-reject-ratio 1 --num-proc {num_proc}"
        return words.split()

    def trial(self) -> None:
        self.figures["trials"] += 1
        try:
            for _ in range(self.rng.choice((1, 1, 2, 3))):
                self._disturb()
            done = receipts(self.out) if self.out.is_dir() else {}
            self.figures["shards kept"] += len(done)
            self._finish()
            again = receipts(self.out)
            if any(again[name] != at for name, at in done.items()):
                raise LostError("a finished shard was made again")
            if output_bytes(self.out) != self.whole:
                raise LostError(f"other bytes: {half_named(self.out, self.whole)}")
            if leftovers(self.out) or os.listdir(self.temporary):
                raise LostError(f"left: {leftovers(self.out)} {os.listdir(self.temporary)}")
        except LostError as error:
            self.figures["hangs" if str(error).startswith("hang") else "lost"] += 1
            print(f"LOST in trial {self.figures['trials']}: {error}", flush=True)
        shutil.rmtree(self.out, ignore_errors=True)

    def _disturb(self) -> None:
        way = self.rng.choice(WAYS)
        run = Run(self.command(self.rng.choice((2, 2, 3))), self.words)
        self._await_the_moment(run)
        run.kill(way, self.rng)
        code = run.wait()
        words = self.words.read_text() if self.words.exists() else ""
        self.figures["ended before"] += code == 0
        self.figures["kills"] += code != 0
        self.ways[way] += code != 0
        if code == 0 and output_bytes(self.out) != self.whole:
            raise LostError(f"{way}: exit 0 without all of the output, said {words!r}")
        if code not in {"worker": (0, 1), "parent": (0, -9), "all": (0, -9)}.get(way, (0, 130, -signal.SIGTERM, -2)):
            raise LostError(f"{way}: exit {code}, said {words!r}")
        if way == "worker" and code == 1:
            if ".tar" not in words or "died (signal SIGKILL)" not in words:
                raise LostError(f"a dead worker's tar is not named: {words!r}")
            self.figures["tars named"] += 1
        if "Traceback" in words:
            self.figures["crashes"] += 1
            raise LostError(f"{way}: {words}")
        if self.out.is_dir() and (wrong := half_named(self.out, self.whole)):
            raise LostError(f"{way}: half a file under a final name: {wrong}")

    def _await_the_moment(self, run: Run) -> None:
        """Any moment of a run; every other time soon after some shard is done, as most of a run is reading itself
        in."""
        if self.rng.random() < 0.5:
            time.sleep(self.rng.uniform(0, self.seconds))
            return
        wanted = len(receipts(self.out)) + self.rng.randrange(SHARDS)
        deadline = time.monotonic() + PATIENCE
        while len(receipts(self.out)) < wanted and session_of(run.pid) and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(self.rng.uniform(0, self.seconds / SHARDS))

    def _finish(self, num_proc: int | None = None) -> None:
        code = Run(self.command(num_proc or self.rng.choice((1, 2, 3))), self.words).wait()
        if code:
            raise LostError(f"the run that was let through: exit {code}, said {self.words.read_text()!r}")


def main() -> int:
    options = arguments(__doc__ or "", 900, 200)
    with tempfile.TemporaryDirectory(prefix="kill-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        trials = Trials(Path(name), options.seed)
        deadline = time.monotonic() + options.seconds
        while trials.figures["trials"] < options.trials and time.monotonic() < deadline:
            trials.trial()
    names = ("trials", "kills", "ended before", "tars named", "shards kept", "rows", "rejects")
    figures = {name: trials.figures[name] for name in names} | {f"by {way}": trials.ways[way] for way in WAYS}
    return close("kill", figures | {name: trials.figures[name] for name in ("crashes", "hangs", "lost")})


if __name__ == "__main__":
    sys.exit(main())
