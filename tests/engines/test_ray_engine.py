"""Two Ray nodes on this machine: the local engine's bytes, also when one of them dies; errors as themselves."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import builder
from builder import convert, verify
from builder.base.errors import ClusterError, MissingExtraError, OptionError, WorkerDiedError, WriteError
from builder.base.options import ConvertOptions
from builder.base.storage import Storage
from builder.conversion.index import index
from builder.curate import fingerprints
from builder.curate.duplicates import duplicates
from builder.engines import contract
from builder.engines import ray as ray_engine
from builder.engines.contract import EngineChoice
from builder.engines.local import make_engine
from builder.hub.stream_out import convert_and_push
from builder.jobs.extract import extract
from stress.common import receipts, session_of
from tests.engines.ray_work import counted, endless, refused, stuck_at_first, suicidal
from tests.hub.server import HubServer
from tests.outputs import leftovers, make_large_source, output_bytes, start, wait_until
from tests.pushes import REPO, here, push_here, there
from tests.servers import s3

SMALL = ConvertOptions(max_shard_size=1_000_000)


def test_ray_that_is_absent_is_an_error_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'laion6m\[ray\]'"):
        convert(str(tmp_path / "src"), str(tmp_path / "out"), engine="ray")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"name": "dask"}, "give local or ray"),
        ({"num_proc": 0}, "give 1 or more"),
        ({"address": "auto"}, "give it only with --engine ray"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(choice: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        EngineChoice(**choice)


class Cluster:
    """Two nodes of one CPU each, without a dashboard. The driver is with the first."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        # Not pytest's: paths of sockets have at most 107 bytes. Removed in the end: a session is megabytes of logs.
        self.folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        Path("/tmp/ray").mkdir(exist_ok=True)  # where Ray notes the address wherever its session lies; it makes none
        head = {**NODE, "include_dashboard": False, "temp_dir": self.folder}
        self._cluster = RayCluster(initialize_head=True, head_node_args=head)
        self.address: str = self._cluster.address
        self.grow()

    def grow(self) -> None:
        self.second = self._cluster.add_node(**NODE)
        self._cluster.wait_for_nodes()

    def lose_second(self) -> None:
        """As a power cut would."""
        self._cluster.remove_node(self.second, allow_graceful=False)

    def stop(self) -> None:
        self._cluster.shutdown()
        wait_until(lambda: not self._processes(), 60)
        shutil.rmtree(self.folder)

    def _processes(self) -> list[str]:
        """Command lines of all that was started for it."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    found.append((entry / "cmdline").read_text(errors="replace").replace("\0", " "))
        return [line for line in found if self.folder in line]


NODE = {"num_cpus": 1, "node_ip_address": "127.0.0.2", "object_store_memory": 100_000_000}
"""Not 127.0.0.1: Ray puts the machine's own address in its place."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")  # before Ray is imported: its ports are open to the network
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")  # else Ray kills tasks when others fill this machine
        pytest.importorskip("ray", reason="ray is not installed: pip install 'laion6m[ray]'")
        before = signal.getsignal(signal.SIGTERM)  # Ray puts its own there, and whoever is forked later inherits it
        running = Cluster()
        signal.signal(signal.SIGTERM, before)
        yield running
        running.stop()


pytestmark = [
    pytest.mark.filterwarnings("default"),  # Ray's own are no business of ours
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]


def test_results_and_counts_come_from_both_nodes(cluster: Cluster) -> None:
    seen: list[tuple[int, int]] = []
    with make_engine(EngineChoice("ray", address=cluster.address)) as crew:
        results = list(crew.run(counted, range(1, 21), lambda images, size: seen.append((images, size))))
    assert sorted(results) == [number * number for number in range(1, 21)]
    assert (sum(images for images, _ in seen), sum(size for _, size in seen)) == (210, 2100)


def test_tasks_are_taken_as_there_is_room_for_them(cluster: Cluster) -> None:
    taken: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    with make_engine(EngineChoice("ray", 3, cluster.address)) as crew:
        run = crew.run(counted, tasks(), lambda images, size: None)
        next(run)
        assert len(taken) <= 3 + 1


def test_an_error_of_the_work_is_raised_as_itself_and_at_once(cluster: Cluster) -> None:
    crew = make_engine(EngineChoice("ray", address=cluster.address))
    with pytest.raises(WriteError, match="cannot write a: No space left"), crew:
        list(crew.run(refused, ["a"], lambda images, size: None))


def test_a_task_that_dies_each_time_is_named_with_its_reasons(cluster: Cluster) -> None:
    crew = make_engine(EngineChoice("ray", address=cluster.address))
    with pytest.raises(WorkerDiedError) as caught, crew:
        list(crew.run(suicidal, ["a"], lambda images, size: None))
    assert str(caught.value).count("WorkerCrashedError") == ray_engine.TRIES


def test_what_a_lost_node_was_at_is_done_elsewhere_and_the_reason_is_said(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = str(cluster.second.node_id)
    (tmp_path / lost).touch()

    def pull_the_plug() -> None:
        while not list(tmp_path.glob(f"*.{lost}")):
            time.sleep(0.05)
        cluster.lose_second()

    thread = threading.Thread(target=pull_the_plug)
    thread.start()
    try:
        with make_engine(EngineChoice("ray", address=cluster.address)) as crew:
            nodes = list(crew.run(stuck_at_first, [(str(tmp_path), n) for n in range(6)], lambda images, size: None))
    finally:
        thread.join()
        cluster.grow()
    assert len(nodes) == 6
    assert lost not in nodes
    assert "NodeDiedError. It is started again." in capsys.readouterr().err


def test_two_nodes_write_the_bytes_of_the_local_engine(cluster: Cluster, tmp_path: Path) -> None:
    make_large_source(tmp_path / "src", tars=3)
    source = str(tmp_path / "src")
    convert(source, str(tmp_path / "local"), SMALL, num_proc=1, quiet=True)
    summary = convert(source, str(tmp_path / "out"), SMALL, engine="ray", address=cluster.address, quiet=True)
    assert summary.totals.rows == 72
    assert output_bytes(tmp_path / "out") == output_bytes(tmp_path / "local")
    again = convert(source, str(tmp_path / "out"), SMALL, engine="ray", address=cluster.address, quiet=True)
    assert again.did == 0
    checked = verify(str(tmp_path / "out"), source=source, engine="ray", address=cluster.address, quiet=True)
    assert checked.problems == ()


def test_relative_paths_are_the_drivers(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_large_source(tmp_path / "src", tars=2)
    convert(str(tmp_path / "src"), str(tmp_path / "local"), SMALL, num_proc=1, quiet=True)
    monkeypatch.chdir(tmp_path)
    convert("src", "out", SMALL, engine="ray", address=cluster.address, quiet=True)
    assert output_bytes(tmp_path / "out") == output_bytes(tmp_path / "local")


def test_index_and_extract_do_there_what_they_do_here(cluster: Cluster, tmp_path: Path) -> None:
    make_large_source(tmp_path / "src", tars=3)
    source, there = str(tmp_path / "src"), {"engine": "ray", "address": cluster.address}
    index(source, str(tmp_path / "local" / "index"), digest=True, num_proc=1, quiet=True)
    index(source, str(tmp_path / "out" / "index"), digest=True, **there, quiet=True)
    extract(source, str(tmp_path / "local" / "files"), num_proc=1, quiet=True)
    extract(source, str(tmp_path / "out" / "files"), **there, quiet=True)
    assert len(output_bytes(tmp_path / "out")) > 72 * 2
    assert output_bytes(tmp_path / "out") == output_bytes(tmp_path / "local")


def test_duplicates_writes_there_the_columns_that_it_writes_here_also_when_some_parts_are_done(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_large_source(tmp_path / "src", tars=2)
    convert(str(tmp_path / "src"), str(tmp_path / "local"), SMALL, num_proc=1, quiet=True)
    shutil.copytree(tmp_path / "local", tmp_path / "out")
    monkeypatch.setattr(fingerprints, "PART_ROWS", 16)
    here = duplicates(tmp_path / "local", num_proc=1, quiet=True)
    there = {"engine": "ray", "address": cluster.address, "quiet": True}
    duplicates(tmp_path / "out", **there)
    parts = sorted((tmp_path / "out" / ".laion6m" / "duplicates" / "parts").iterdir())
    assert len(parts) == 3
    parts[1].unlink()
    before = parts[0].stat().st_mtime_ns
    again = duplicates(tmp_path / "out", **there)
    assert parts[0].stat().st_mtime_ns == before, "parts that were done are not made again"
    assert replace(again, out="", seconds=0) == replace(here, out="", seconds=0)
    assert here.duplicates > 0
    assert output_bytes(tmp_path / "out") == output_bytes(tmp_path / "local")


def test_from_bucket_to_bucket_the_bytes_are_the_local_engines(cluster: Cluster, tmp_path: Path) -> None:
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    make_large_source(tmp_path / "src", tars=3)
    convert(str(tmp_path / "src"), str(tmp_path / "local"), SMALL, num_proc=1, quiet=True)
    with s3("cluster") as server:
        # the nodes were started before there were keys in the environment: they have them of the options alone
        options = {"s3": {**server.options, "key": "test", "secret": "test"}}
        system, bucket = Storage(options).system("s3://cluster")
        system.put(str(tmp_path / "src"), f"{bucket}/src", recursive=True)
        there: dict[str, Any] = {"engine": "ray", "address": cluster.address, "storage_options": options}
        server.weather.every = 20
        summary = convert("s3://cluster/src", "s3://cluster/out", SMALL, quiet=True, **there)
        assert server.weather.failed > 0
        server.weather.every = 0
        assert (summary.totals.rows, summary.complete) == (72, True)
        system.get(f"{bucket}/out", str(tmp_path / "out"), recursive=True)
        assert output_bytes(tmp_path / "out") == output_bytes(tmp_path / "local")
        again = convert("s3://cluster/src", "s3://cluster/out", SMALL, quiet=True, **there)
        assert again.did == 0


def test_shards_that_the_nodes_make_are_pushed_by_the_driver(
    cluster: Cluster, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_large_source(tmp_path / "src", tars=3)
    convert(str(tmp_path / "src"), str(tmp_path / "local"), SMALL, num_proc=1, quiet=True)
    push_here(hub, monkeypatch)
    _, pushed = convert_and_push(
        str(tmp_path / "src"),
        str(tmp_path / "out"),
        SMALL,
        push_to=REPO,
        delete_pushed=True,
        engine="ray",
        address=cluster.address,
        quiet=True,
    )
    assert pushed is not None
    assert pushed.ok
    made, expected = there(hub), here(tmp_path / "local")
    assert {**made, "README.md": b""} == {**expected, "README.md": b""}, "the card names the repository"
    assert not list((tmp_path / "out" / "data").glob("*.parquet"))


def test_a_run_that_is_given_up_leaves_nothing_at_work(cluster: Cluster, tmp_path: Path) -> None:
    notes = [tmp_path / "a", tmp_path / "b"]
    crew = make_engine(EngineChoice("ray", address=cluster.address))

    def interrupt(images: int, size: int) -> None:
        if all(note.exists() and note.read_text() for note in notes):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), crew:
        list(crew.run(endless, map(str, notes), interrupt))
    for note in notes:
        wait_until(lambda: not Path("/proc", note.read_text()).exists(), 30)  # noqa: B023 - called at once


def test_ctrl_c_ends_a_cluster_of_our_own_and_the_same_command_goes_on(tmp_path: Path, cluster: Cluster) -> None:
    """A real SIGINT, to the whole group, as from a terminal. Ray's own processes are in its session."""
    make_large_source(tmp_path / "src", tars=12, per_tar=48)
    convert(str(tmp_path / "src"), str(tmp_path / "local"), SMALL, num_proc=1, quiet=True)
    out, home = tmp_path / "out", tmp_path / "home"
    home.mkdir()
    shards = len(list((tmp_path / "local" / "data").iterdir()))
    words = ("convert", tmp_path / "src", out, "--max-shard-size", "1MB", "--engine", "ray", "--num-proc", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_AUTH_MODE")
        patch.delenv("RAY_AUTH_TOKEN")
        patch.setenv("HOME", str(home))
        patch.setenv("RAY_TMPDIR", cluster.folder)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # behind a & in a script, it comes to us ignored
        for _ in range(10):
            process = start(*words, "--json", leaks=False)
            wait_until(lambda: receipts(out) or process.poll() is not None, 120)  # noqa: B023 - called at once
            os.kill(process.pid, signal.SIGSTOP)  # a busy machine may let it end before we come to interrupt it
            if len(receipts(out)) < shards - 2:
                break
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            wait_until(lambda: not session_of(process.pid), 60)  # noqa: B023 - called at once
            shutil.rmtree(out)
        os.killpg(process.pid, signal.SIGINT)
        os.kill(process.pid, signal.SIGCONT)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 130, stderr
        assert json.loads(stdout)["error"] in stderr
        assert "Traceback" not in stderr
        assert "to go on" in stderr
        assert list(home.iterdir()) == [], "Ray keeps a token there unless it is given one"
        wait_until(lambda: not session_of(process.pid), 60)
        done = receipts(out)
        assert 0 < len(done) < shards
        process = start(*words, "--json", leaks=False)
        stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["rows"] == 12 * 48
    assert done.items() <= receipts(out).items(), "shards that were done are not made again"
    assert output_bytes(out) == output_bytes(tmp_path / "local")
    assert leftovers(out) == []
    wait_until(lambda: not session_of(process.pid), 60)


def test_what_ray_prints_goes_to_stderr(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    with make_engine(EngineChoice("ray", address=cluster.address)):
        print("a node died")
    print("the result")
    assert capsys.readouterr() == ("the result\n", "a node died\n")


def test_a_node_with_other_versions_is_refused(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "__version__", "0.0.0")
    with pytest.raises(ClusterError, match=r"has laion6m .*, this process has laion6m 0\.0\.0"):
        make_engine(EngineChoice("ray", address=cluster.address))


def test_a_node_that_joins_later_with_other_versions_is_refused_too(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "__version__", "0.0.0")
    monkeypatch.setattr(ray_engine.RayEngine, "_compare_versions", lambda self: None)
    crew = make_engine(EngineChoice("ray", address=cluster.address))
    with pytest.raises(ClusterError, match=r"a node has laion6m .*, the driver has laion6m 0\.0\.0"), crew:
        list(crew.run(counted, [1], lambda images, size: None))


def test_a_ray_client_address_is_refused_with_the_way_out(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match="Give HOST:PORT"):
        make_engine(EngineChoice("ray", address="ray://127.0.0.2:10001"))


def test_a_cluster_that_is_not_there_is_an_error(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:1"):
        make_engine(EngineChoice("ray", address="127.0.0.1:1"))
