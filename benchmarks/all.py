"""Run every benchmark, one after the other, and write benchmarks/README.md.

    python benchmarks/all.py SOURCE --scratch DIR_ON_DISK [--only converting planning …] [--quick] [--out FOLDER]

SOURCE is of the card layout; what else the scripts read is made from it in DIR, which needs 25 GB. The figures stay as
data in FOLDER/records.json beside FOLDER/README.md (FOLDER: this one). With ``--only`` the other subjects keep the
figures, the date and the machine of their last run. A script that fails or takes longer than ``--patience`` seconds is
named in its table's place, and the rest goes on. ``--quick``: little input, to try the scripts; it writes into DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import corpus
from benchmarks.results import Results, Row, machine, versions

HERE = Path(__file__).resolve().parent
MEMORY = "/dev/shm"


@dataclass(frozen=True)
class Step:
    """A run of a script: one table. ``quick``: options that a quick run adds. Words in capitals stand for folders."""

    command: str
    quick: str = ""
    about: str = ""


@dataclass(frozen=True)
class Subject:
    title: str
    about: str
    steps: tuple[Step, ...]
    packages: tuple[str, ...] = ()
    """Peers, by the names that pip knows them by."""
    remark: str = ""
    """What the tables do not show: why a figure is not better, what it depends on."""


SUBJECTS = {
    "converting": Subject(
        "Converting",
        "Tars and captions become a table, by two processes. `cp` copies the same tars: the floor. `verify` reads what `convert` made.",
        (
            Step(
                "benchmarks/convert.py SOURCE --scratch MEMORY --peers cp convert index verify verify-source",
                "--gigabytes 0.03 --rounds 1",
                "1.7 GB, in memory:",
            ),
            Step(
                "benchmarks/convert.py SOURCE --scratch MEMORY --rounds 2 --peers cp convert tarfile generator wds-arrow wds-parquet mds lance litdata",
                "--gigabytes 0.03 --rounds 1",
                "The same beside its peers. After some of these the machine is slower for a while, for `cp` too:",
            ),
            Step(
                "benchmarks/convert.py SOURCE --scratch MEMORY --gigabytes 5 --peers cp convert index verify verify-source",
                "--gigabytes 0.05 --rounds 1",
                "5 GB, in memory:",
            ),
            Step(
                "benchmarks/convert.py SOURCE --scratch DIR --cold --peers cp convert index verify verify-source",
                "--gigabytes 0.03 --rounds 1",
                "1.7 GB on a disk. The page cache is empty at the start, and a run ends when its files are on the disk:",
            ),
        ),
        ("datasets", "mosaicml-streaming", "pylance", "litdata"),
        "`cp` in memory varies here: 0.8 to 2.4 s for the same 1.7 GB within an hour. Compare runs of the same minute. A tenth of a second of each run is its start.",
    ),
    "row": Subject(
        "A random row",
        "The image's bytes and the caption of one row, from a warm page cache. `ours-256` reads 256 rows at a time.",
        (
            Step(
                "benchmarks/read.py SOURCE --scratch DIR --peers ours ours-256 ours-arrow index files hf-arrow mds lance",
                "--samples 200 --rounds 1 --peers ours files",
            ),
        ),
        ("datasets", "mosaicml-streaming", "pylance"),
    ),
    "cold": Subject(
        "Cold batches",
        "Batches of 256 rows from a disk whose page cache is empty: rows from anywhere, and rows in the samplers' windowed order. `disk` is the floor: 16 threads "
        "read the same ranges and do nothing else.",
        (Step("benchmarks/read.py SOURCE --cold --scratch DIR --rounds 3", "--rounds 1 --peers ours files"),),
        ("mosaicml-streaming", "pylance", "litdata", "webdataset"),
        "The windowed order can be faster than one sequential reader: the sampler announces a window, and 4 threads read it from its start to its end.",
    ),
    "networks": Subject(
        "Networks",
        "256 random rows over `s3://` (moto is the server) and `hf://` (the tests' Hub), with 50 ms a request; a training loop that takes 200 samples a second; converting from `s3://`.",
        (
            Step("benchmarks/remote_read.py DATASET", "--batch 32 --rounds 1"),
            Step("benchmarks/remote_read.py DATASET --train", "--workers 2 --batch 8", "A training loop:"),
            Step("benchmarks/remote.py PART --num-proc 2 --scratch DIR", "--rounds 1", "Converting:"),
        ),
    ),
    "choosing": Subject(
        "Choosing rows",
        "One million rows; all find those with `width >= 1024 and length(caption) > 200`.",
        (Step("benchmarks/choose.py --scratch DIR", "--rows 50000 --rounds 2"),),
        ("duckdb", "polars", "datasets"),
        "The first query of a process also imports DuckDB.",
    ),
    "duplicates": Subject(
        "Duplicates",
        "Processor time of one process: a fingerprint; all pairs of one million hashes that are 10 bits apart or less; a random tenth of SOURCE written as tars.",
        (
            Step("benchmarks/curate.py SOURCE --only fingerprints", "--rounds 1"),
            Step("benchmarks/curate.py SOURCE --only pairs", "--hashes 20000 --rounds 1"),
            Step("benchmarks/curate.py PART --only tenth --scratch DIR", "--rounds 1"),
        ),
        ("ImageHash", "imagededup", "faiss-cpu", "webdataset"),
    ),
    "training": Subject(
        "Batches for training",
        "From index to collated batch: processor time of one thread. Upstream is OpenUni's dataset over extracted files.",
        tuple(
            Step(
                f"benchmarks/train.py PHOTOS --tmp DIR --image-size {size} --scale {scale} --rounds 2 --rows 0",
                "--rounds 1",
                f"Photographs {'as they are' if scale == 1 else 'twice as wide and high'}, to {size} pixels:",
            )
            for scale in (1, 2)
            for size in (256, 512)
        ),
        ("torch", "pillow", "opencv-python-headless", "simplejpeg", "torchvision"),
        "To 256 pixels from photographs as they are (0.2 MP, 375 pixels on the short side, 108 kB) fast mode stays under 4 ×. They are too small to decode at a half, and "
        "their bits alone, which every decoder reads, take most of that time. Four channels, planes resized one by one, other DCTs and decoding into kept memory gained nothing.",
    ),
    "resuming": Subject(
        "Resuming",
        "From a checkpoint to the first batch of a resumed run, 200 batches into 2 million rows.",
        (Step("benchmarks/resume.py DEMO"),),
        ("torchdata", "accelerate", "mmengine"),
    ),
    "viewer": Subject(
        "The viewer",
        "One million rows with captions of 360 bytes: the address, searches, memory, the report.",
        (Step("benchmarks/view.py --browser --scratch DIR", "--samples 5000"),),
        ("selenium",),
    ),
    "planning": Subject(
        "Planning",
        "What is done once for a whole source. [docs/scale.md](../docs/scale.md) explains the stages.",
        (
            Step("benchmarks/scale.py --samples 100000 1000000 --scratch DIR", "--samples 5000 10000"),
            Step(
                "benchmarks/scale.py --samples 6000000 --stages plan --scratch DIR",
                "--samples 10000",
                "6 million samples: listing, join, cut; data.json in random order:",
            ),
        ),
    ),
    "memory": Subject(
        "Memory",
        "The highest memory of a process that reads what was made to exhaust it. [docs/security.md](../docs/security.md) has the bounds.",
        (Step("stress/memory.py", "--only annotation"),),
    ),
}


class Inputs:
    """Folders that commands name, each made when it is first asked for."""

    def __init__(self, source: str, scratch: str, quick: bool) -> None:
        self.scratch, self.quick = scratch, quick
        self._source = source
        self._made: dict[str, str] = {}
        self._make: dict[str, Callable[[str], Any]] = {
            "PHOTOS": lambda folder: corpus.photographs(source, folder, 20 if quick else 150),
            "PART": lambda folder: corpus.make(source, folder, 0.03e9 if quick else 0.4e9),
            "DATASET": lambda folder: laion6m("convert", self["PART"], folder, "--max-shard-size", "100MB"),
            "DEMO": lambda folder: laion6m("convert", demo(f"{folder}-source"), folder),
        }
        if quick:
            self._make["SOURCE"] = lambda folder: corpus.make(source, folder, 0.03e9)

    def __getitem__(self, name: str) -> str:
        if name in ("DIR", "MEMORY") or (name == "SOURCE" and not self.quick):
            memory = MEMORY if os.path.isdir(MEMORY) else self.scratch
            return {"DIR": self.scratch, "MEMORY": memory, "SOURCE": self._source}[name]
        if name not in self._made:
            folder = os.path.join(self.scratch, name.lower())
            self._make[name](folder)
            self._made[name] = folder
        return self._made[name]


def laion6m(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "builder", *words], check=True, capture_output=True, cwd=HERE.parent)


def demo(folder: str) -> str:
    laion6m("demo", folder)
    return os.path.join(folder, "source")


def run(step: Step, inputs: Inputs, patience: float) -> dict[str, Any]:
    """The rows of a step, or why there are none."""
    command = f"{step.command} {step.quick}" if inputs.quick else step.command
    with tempfile.NamedTemporaryFile(dir=inputs.scratch) as data, tempfile.TemporaryFile("w+") as said:
        try:
            script, *words = re.sub(r"\b[A-Z]{3,}\b", lambda found: inputs[found[0]], command).split()
            line = [sys.executable, str(HERE.parent / script), *words, "--json", data.name]
            process = subprocess.Popen(
                line, stdout=said, stderr=said, start_new_session=True, env={**os.environ, "PYTHONWARNINGS": "ignore"}
            )
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                return {"failed": f"takes longer than {patience:.0f} s"}
            finally:
                stop(process)
            if process.returncode:
                said.seek(0)
                lines = said.read().strip().splitlines() or [f"exit {process.returncode}"]
                return {"failed": lines[-1].replace(inputs.scratch, "DIR")[:200]}
            return {"rows": json.load(data)["rows"]}
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            return {"failed": f"{type(error).__name__}: {error}".replace(inputs.scratch, "DIR")[:200]}


def stop(process: subprocess.Popen[str]) -> None:
    """End what a script started and left."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def measure(subject: Subject, inputs: Inputs, patience: float) -> dict[str, Any]:
    """A record: all that a subject's part of the page says."""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(inputs.scratch),
        "versions": versions(("laion6m", "pyarrow")) | versions(subject.packages),
        "steps": [{"command": step.command} | run(step, inputs, patience) for step in subject.steps],
    }


def page(records: dict[str, Any]) -> str:
    """The whole README.md."""
    latest = max(records.values(), key=lambda record: record["date"], default=None)
    lines = [
        "# Benchmarks",
        "",
        "`python benchmarks/all.py SOURCE --scratch DIR` runs the scripts and writes this page. Each script runs this project and its peers in turn, on the same data.",
        "In the commands SOURCE is a source in the card layout, DIR a folder on a disk and MEMORY one on tmpfs. `all.py` makes the rest from SOURCE: PART (0.4 GB of its",
        "photographs), DATASET (PART, converted), PHOTOS (150 JPEG files), DEMO (`laion6m demo`). `records.json` has the figures as data.",
        "",
    ]
    if latest:
        lines += [f"{describe(latest)}", ""]
    for name, subject in SUBJECTS.items():
        lines += [f"## {subject.title}", "", subject.about, ""]
        record = records.get(name)
        if record is None:
            lines += ["Not measured yet.", ""]
            continue
        if latest and describe(record) != describe(latest):
            lines += [describe(record), ""]
        steps = {step["command"]: step for step in record["steps"]}
        for step in subject.steps:
            done = steps.get(step.command, {"failed": "not measured yet"})
            lines += [f"{step.about} `python {step.command}`".lstrip(), ""]
            lines += [f"No figures: {done['failed']}", ""] if "failed" in done else [*markdown(done["rows"]), ""]
        lines += [subject.remark, ""] if subject.remark else []
        lines += [named(subject, record["versions"]), ""] if subject.packages else []
    return "\n".join(lines).rstrip() + "\n"


def describe(record: dict[str, Any]) -> str:
    about = record["machine"]
    return (
        f"Date: {record['date']}. Machine: {about['processor']}; {about['memory']}; {about['system']}; DIR on {about['scratch']}; "
        f"Python {about['Python']}; pyarrow {record['versions']['pyarrow']}; laion6m {record['versions']['laion6m']}."
    )


def named(subject: Subject, found: dict[str, str | None]) -> str:
    each = [
        f"{name} {found[name]}" if found.get(name) else f"{name} is not installed here" for name in subject.packages
    ]
    return f"Peers: {', '.join(each)}."


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    head, *lines = Results(Row(**row) for row in rows).table()
    rule = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (head, rule, *lines)]


def load(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("--scratch", required=True, metavar="DIR", help="a folder on a disk")
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), metavar="SUBJECT")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", metavar="FOLDER", help="where README.md and records.json go")
    parser.add_argument("--patience", type=float, default=400, help="seconds for one script")
    arguments = parser.parse_args()
    os.makedirs(arguments.scratch, exist_ok=True)
    out = Path(arguments.out or (arguments.scratch if arguments.quick else HERE))
    scratch = tempfile.mkdtemp(prefix="laion6m-all-", dir=os.path.abspath(arguments.scratch))
    records = load(out / "records.json")
    inputs = Inputs(os.path.abspath(arguments.source), scratch, arguments.quick)
    try:
        for name in arguments.only:
            started = time.perf_counter()
            records[name] = measure(SUBJECTS[name], inputs, arguments.patience)
            for step in records[name]["steps"]:
                if "failed" in step:
                    print(f"{name}: {step['command']}: {step['failed']}", file=sys.stderr, flush=True)
            print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
            out.mkdir(parents=True, exist_ok=True)
            (out / "records.json").write_text(json.dumps(records, ensure_ascii=False, indent=1) + "\n")
            (out / "README.md").write_text(page(records))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"wrote {out / 'README.md'}")


if __name__ == "__main__":
    main()
