"""Disk errors at every write of a conversion: full, failing, read-only, out of inodes.

    python stress/enospc.py [--seconds 900] [--trials 100000] [--seed 6]

A shim in front of the C library (faulty.c, compiled here with cc) fails the n-th call that writes below OUT, of all
processes of a run together, for every n there is, with ENOSPC or EIO, once or from then on; and the n-th read of the
source with EIO. It tells whether it did: a run with exit code 0 has survived an error, or has not reached it (two
processes do not make the same number of calls each time; a real disk may have had room). Where root may mount,
also real tmpfs of growing size and of few inodes, and read-only ones. Every time: exit code 1, one line that names a
file and the system's reason, no file under a final name that is not whole, and the same command afterwards, on a disk
that works, ends with the same bytes, doing nothing twice.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import product, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import builder.cli.commands
import builder.conversion.convert  # noqa: F401 - before the forks: the code of all of them is that of now
from stress.common import (
    ROOT,
    Ending,
    LostError,
    account,
    arguments,
    close,
    half_named,
    in_process,
    receipts,
    run_cli,
    shard_source,
)
from tests.outputs import leftovers, output_bytes

WRITES, READS = 1, 2
PATIENCE = 60.0
ENDINGS = ("refused", "survived", "not reached")


def with_shim(scratch: Path) -> ctypes.CDLL | None:
    """The shim, loaded in front; starts this script anew to have it so. None where there is no C compiler."""
    if os.environ.get("LAION6M_FAULTY"):
        return ctypes.CDLL(os.environ["LAION6M_FAULTY"])
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = scratch / "faulty.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", library, ROOT / "stress" / "faulty.c", "-ldl"], check=True
    )
    environment = {**os.environ, "LD_PRELOAD": str(library), "LAION6M_FAULTY": str(library)}
    return os.execve(sys.executable, [sys.executable, *sys.argv], environment)


class Trial(NamedTuple):
    """``kind``: of what fails."""

    kind: str
    run: Callable[[], None]


class Trials:
    """Runs that fail, and the runs that must mend them."""

    def __init__(self, source: Path, scratch: Path) -> None:
        self.source, self.scratch = source, scratch
        self.figures: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        reference = scratch / "reference"
        self._sound(reference)
        self.whole = output_bytes(reference)
        self.listed = 20
        counted = account(reference, self.listed)
        self.figures["rows"], self.figures["rejects"] = counted.rows, counted.rejects

    def command(self, out: Path, num_proc: int) -> list[object]:
        return ["convert", self.source, out, "--max-shard-size", "1MB", "--max-reject-ratio", 1, "--num-proc", num_proc]

    def fail(
        self,
        kind: str,
        out: Path,
        before: Callable[[], None] | None,
        num_proc: int = 1,
        mend: Any = None,
        note: str = "",
        fired: Callable[[], int] | None = None,
    ) -> None:
        """One run in which something fails, then ``mend``, then one in which nothing does. ``fired``: how many calls
        failed; None: nobody knows."""
        ending = in_process(lambda: run_cli(*self.command(out, num_proc), before=before, after=fired), PATIENCE)
        self.figures["trials"] += 1
        self.kinds[kind] += 1
        try:
            self._judge(ending, out)
            before_rerun = receipts(out)
            if mend is not None:
                mend()
            self._sound(out)
            again = receipts(out)
            if any(again.get(name) != at for name, at in before_rerun.items()):
                raise LostError(f"done again: {before_rerun} {again}")
        except LostError as error:
            self.figures["lost"] += 1
            print(f"LOST {kind} {note}: {error}", flush=True)

    def _judge(self, ending: Ending, out: Path) -> None:
        if ending.hung or ending.crashed:
            self.figures["hangs" if ending.hung else "crashes"] += 1
            raise LostError(f"{ending}")
        code, words, failed = ending.value
        if out.is_dir() and (wrong := half_named(out, self.whole)):
            raise LostError(f"half a file under a final name: {wrong}")
        if code == 0:
            if output_bytes(out) != self.whole:
                raise LostError(f"exit 0 without all of the output: {words!r}")
            # An error in tidying up, which nobody needs to hear of; or none at all.
            self.figures["survived" if failed else "not reached"] += 1
            return
        if failed == 0:
            raise LostError(f"exit {code} though nothing failed: {words!r}")
        self.figures["refused"] += 1
        lines = [line for line in words.splitlines() if line.startswith("laion6m: ")]
        if code != 1 or "Traceback" in words or len(lines) != 1:
            raise LostError(f"exit {code}, said: {words!r}")
        if str(out) not in lines[0] and str(self.source) not in lines[0]:
            raise LostError(f"no file is named in: {lines[0]!r}")
        reasons = [*(os.strerror(number) for number in (28, 5, 30, 13, 27)), "its disk has"]
        if not any(reason in lines[0] for reason in reasons):
            raise LostError(f"the reason is not in: {lines[0]!r}")

    def _sound(self, out: Path) -> None:
        ending = in_process(lambda: run_cli(*self.command(out, 1)), PATIENCE)
        if ending.value is None or ending.value[0] != 0:
            raise LostError(f"the run without errors ended with {ending}")
        if hasattr(self, "whole") and (output_bytes(out) != self.whole or leftovers(out)):
            raise LostError(f"the rerun left {leftovers(out)} or other bytes")


def by_shim(trials: Trials, shim: ctypes.CDLL) -> list[Trial]:
    """Every n, both errors, once and from then on, in one process and in two."""
    out = trials.scratch / "out"
    found: list[Trial] = []
    for num_proc in (1, 2):
        for which, folder, codes in (
            (WRITES, out, (errno.ENOSPC, errno.EIO)),
            (READS, trials.source, (errno.EIO,)),
        ):
            calls = count_calls(trials, shim, which, folder, num_proc)
            what = "write" if which == WRITES else "read"
            print(f"{calls} calls that {what} in a run of {num_proc} processes", flush=True)
            for n, code, sticky in product(range(1, calls + 1), codes, (False, True)):
                kind, note = f"{errno.errorcode[code]} on {what}", f"call {n}, {sticky=}, {num_proc=}"
                before = partial(arm, shim, folder, which, n, code, sticky)
                run = partial(trials.fail, kind, out, before, num_proc, note=note, fired=shim.fault_fired)
                found.append(Trial(kind, run))
    return found


def count_calls(trials: Trials, shim: ctypes.CDLL, which: int, folder: Path, num_proc: int) -> int:
    """Calls of a run in which none fails."""
    out = trials.scratch / "out"
    before = partial(arm, shim, folder, which, 0, 0, False)
    line = trials.command(out, num_proc)
    ending = in_process(partial(run_cli, *line, before=before, after=shim.fault_count), PATIENCE)
    shutil.rmtree(out)
    return int(ending.value[2])


def arm(shim: ctypes.CDLL, folder: Path, which: int, n: int, code: int, sticky: bool) -> None:
    shim.fault_arm(os.fsencode(folder), which, n, code, int(sticky))


def by_limit(trials: Trials) -> list[Trial]:
    """RLIMIT_FSIZE: files end early, as on file systems with a largest size."""

    def before(limit: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    out = trials.scratch / "out"
    limits = (0, 100, 4096, 100_000, 900_000)
    kind = "file too large"
    return [
        Trial(kind, partial(trials.fail, kind, out, partial(before, limit), note=f"limit {limit}")) for limit in limits
    ]


def by_mount(trials: Trials) -> list[Trial]:
    """Real small disks; none where mounting is not allowed."""
    place = trials.scratch / "mount"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", place], capture_output=True).returncode:
        return []
    subprocess.run(["umount", place], check=True)

    def on(options: str, mend: str, kind: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
        out = place / "out"
        try:
            if mend == "rw":
                out.mkdir()
                subprocess.run(["mount", "-o", "remount,ro", place], check=True)
            change = ["mount", "-o", f"remount,{mend}", place]
            trials.fail(kind, out, None, 2, mend=lambda: subprocess.run(change, check=True), note=options)
        finally:
            subprocess.run(["umount", place], check=True)

    sizes = (4, 64, 400, 1000, 1300, 2000, 2600, 3300, 4100, 4200, 5000)
    inodes = (2, 3, 5, 8, 12, 14, 17, 20, 25)
    found = [("full tmpfs", f"size={size}k", "size=64m") for size in sizes]
    found += [("no inodes", f"size=64m,nr_inodes={number}", "nr_inodes=1000") for number in inodes]
    found.append(("read-only", "size=64m", "rw"))
    return [Trial(kind, partial(on, options, mend, kind)) for kind, options, mend in found]


def by_turns(trials: list[Trial], seed: int) -> list[Trial]:
    """In random order, but one of each kind after the other: the first few are of all kinds."""
    random.Random(seed).shuffle(trials)
    kinds: dict[str, list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.kind):
        kinds.setdefault(trial.kind, []).append(trial)
    return [trial for turn in zip_longest(*kinds.values()) for trial in turn if trial is not None]


def main() -> int:
    options = arguments(__doc__ or "", 900, 100_000)
    with tempfile.TemporaryDirectory(prefix="enospc-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        scratch = Path(name)
        shim = with_shim(scratch)
        trials = Trials(shard_source(scratch / "source"), scratch)
        mounts = by_mount(trials)
        todo = by_limit(trials) + mounts + (by_shim(trials, shim) if shim else [])
        print(f"shim: {'yes' if shim else 'no C compiler'}; tmpfs: {'yes' if mounts else 'mounting is not allowed'}")
        deadline = time.monotonic() + options.seconds
        for trial in by_turns(todo, options.seed)[: options.trials]:
            if time.monotonic() > deadline:
                break
            trial.run()
            shutil.rmtree(scratch / "out", ignore_errors=True)
        figures = {"trials": trials.figures["trials"], "of": len(todo)} | dict(sorted(trials.kinds.items()))
        figures |= {name: trials.figures[name] for name in (*ENDINGS, "rows", "rejects", "crashes", "hangs", "lost")}
    if library := os.environ.get("LAION6M_FAULTY"):  # of the process that started this one anew
        shutil.rmtree(Path(library).parent)
    return close("enospc", figures)


if __name__ == "__main__":
    sys.exit(main())
