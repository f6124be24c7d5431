"""Two Ray nodes on this machine: the local engine's bytes, also when one of them dies; errors as themselves."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builder import convert, verify
from builder.errors import ClusterError, MissingExtraError, OptionError, WorkerDiedError, WriteError
from builder.options import ConvertOptions
from builder.run import engines, ray_engine
from builder.run.engines import EngineChoice, make_engine
from tests.outputs import make_large_source, output_bytes
from tests.run.ray_work import counted, refused, stuck_at_first, suicidal

SMALL = ConvertOptions(max_shard_size=1_000_000)


def test_ray_that_is_absent_is_an_error_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'laion6m\[ray\]'"):
        convert(str(tmp_path / "src"), str(tmp_path / "out"), engine="ray")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"name": "dask"}, "one of local, ray"),
        ({"num_proc": 0}, "1 or more"),
        ({"address": "auto"}, "goes with --engine ray"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(choice: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        EngineChoice(**choice)


class Cluster:
    """Two nodes of one CPU each. The driver is with the first."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        head = {"num_cpus": 1, "include_dashboard": False, "node_ip_address": "127.0.0.2"}
        self._cluster = RayCluster(initialize_head=True, head_node_args=head)
        self.address: str = self._cluster.address
        self.grow()

    def grow(self) -> None:
        self.second = self._cluster.add_node(num_cpus=1, node_ip_address="127.0.0.2")
        self._cluster.wait_for_nodes()

    def lose_second(self) -> None:
        """As a power cut would."""
        self._cluster.remove_node(self.second, allow_graceful=False)

    def stop(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'laion6m[ray]'")
    running = Cluster()
    yield running
    running.stop()


pytestmark = pytest.mark.filterwarnings("default")  # Ray's own are no business of ours


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


def test_what_a_lost_node_was_at_is_done_elsewhere(cluster: Cluster, tmp_path: Path) -> None:
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


def test_a_node_with_other_versions_is_refused(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine.builder, "__version__", "0.0.0")
    with pytest.raises(ClusterError, match=r"has laion6m .*, this process laion6m 0\.0\.0"):
        make_engine(EngineChoice("ray", address=cluster.address))


def test_a_cluster_that_is_not_there_is_an_error(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:1"):
        make_engine(EngineChoice("ray", address="127.0.0.1:1"))
