"""Faults that the test Hub is ordered to make, and clients killed while they talk to it."""

from __future__ import annotations

import hashlib
import http.client
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.hub.client import run_client, run_ok
from tests.hub.samples import (
    EMPTY,
    FULL,
    LARGE,
    LARGE_ID,
    PUSH,
    PUSH_ROUTES,
    ask,
    fill,
)
from tests.hub.server import HubServer
from tests.hub.storage import File


@pytest.mark.slow
def test_a_client_killed_before_it_reads_an_answer_leaves_all_or_nothing(tmp_path: Path) -> None:
    killed_at = []
    for number in range(1, 20):
        with HubServer(tmp_path / str(number)) as hub:
            done = run_client(hub, PUSH, kill_at=number)
            # the commit is done although nobody read its answer
            assert set(hub.store.files("user/NAME")) == (FULL if hub.requests("commit") else EMPTY)
            if done.returncode == 0:
                break
            assert done.returncode == -signal.SIGKILL
            assert len(hub.log) == number
            assert hub.log[-1].status is None
            killed_at.append(hub.log[-1].route)
    assert [route for route in killed_at if route != "info"] == PUSH_ROUTES  # info: of some versions only


def test_a_client_killed_when_its_request_arrives_has_done_nothing_by_it(hub: HubServer) -> None:
    assert run_client(hub, PUSH, kill_at="commit", kill_when="request").returncode == -signal.SIGKILL
    assert set(hub.store.files("user/NAME")) == EMPTY
    run_ok(hub, PUSH)
    assert set(hub.store.files("user/NAME")) == FULL
    assert len(hub.requests("put")) == 1  # what was stored is not sent again


@pytest.mark.slow
def test_faults_on_requests_that_the_client_repeats_are_ridden_out_by_it(hub: HubServer) -> None:
    """PUT is what every version repeats; before 1.0 that is nearly all."""
    faults = [hub.faults.add("put", "fail_after", status=500), hub.faults.add("put", "drop", nth=2)]
    run_ok(hub, PUSH)
    assert [fault.hits for fault in faults] == [1, 1]
    assert [(r.status, r.fault) for r in hub.requests("put")] == [(500, "fail_after"), (None, "drop"), (200, None)]
    assert set(hub.store.files("user/NAME")) == FULL


def test_a_lost_answer_to_a_commit_is_an_error_of_the_client_though_the_commit_exists(hub: HubServer) -> None:
    hub.faults.add("commit", "fail_after", status=None)
    done = run_client(hub, PUSH)
    assert done.returncode == 1, done.stdout
    assert len(hub.requests("commit")) == 1  # the client does not ask again
    assert set(hub.store.files("user/NAME")) == FULL


@pytest.mark.slow
def test_a_download_that_is_cut_is_resumed_after_its_last_whole_piece(hub: HubServer) -> None:
    """The client writes pieces of 10 MiB; what it had of the next one is lost."""
    fill(hub)
    piece, content = 10 << 20, LARGE * 450
    hub.store.put_large(hashlib.sha256(content).hexdigest(), [content])
    large_file = File.large(hashlib.sha256(content).hexdigest(), len(content))
    hub.store.add_commit(hub.store.repo("user/x"), "refs/heads/main", None, {"a.bin": large_file}, "larger")
    hub.faults.add("cdn_get", "truncate", at=piece + 1000)
    code = """
        from huggingface_hub import hf_hub_download
        try:
            path = hf_hub_download("user/x", "a.bin", repo_type="dataset")
        except OSError:  # before 1.0 it gives up here, and resumes when it is asked again
            path = hf_hub_download("user/x", "a.bin", repo_type="dataset")
        assert open(path, "rb").read() == bytes(range(256)) * 45_000
    """
    run_ok(hub, code)
    sent = [(r.status, r.bytes_out) for r in hub.requests("cdn_get")]
    assert sent == [(200, piece + 1000), (206, len(content) - piece)]


WHOAMI = ("GET", "/api/whoami-v2")


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("fail_before", {}, 503),
        ("status", {"status": 429, "headers": {"RateLimit": '"api";r=0;t=1'}}, 429),
        ("fail_after", {"status": 500}, 500),
        ("fail_after", {"status": None}, ConnectionError),
        ("drop", {}, ConnectionError),
        ("truncate", {}, http.client.IncompleteRead),
        ("delay", {"seconds": 0.2}, 200),
    ],
)
def test_a_fault_hits_the_nth_request_as_often_as_ordered(
    hub: HubServer, kind: Any, options: dict[str, Any], expected: Any
) -> None:
    fault = hub.faults.add("whoami", kind, nth=2, times=2, **options)
    seen: list[Any] = []
    for _ in range(4):
        start = time.monotonic()
        try:
            status, headers, _body = ask(hub, *WHOAMI)
        except (ConnectionError, http.client.HTTPException) as error:
            seen.append(expected if isinstance(error, expected) else error)
        else:
            seen.append(status)
            assert status == 200 or headers.items() >= {k.lower(): v for k, v in fault.headers.items()}.items()
        if kind == "delay":
            assert time.monotonic() - start >= 0.2 or len(seen) not in (2, 3)
    assert seen == [200, expected, expected, 200]
    assert fault.hits == 2
    assert [r.fault for r in hub.log] == [None, kind, kind, None]


def test_a_fault_may_be_for_one_method_or_path_only(hub: HubServer) -> None:
    fill(hub)
    hub.faults.add("*", "status", status=418, method="GET", path="README", times=99)
    readme, other = "/datasets/user/x/resolve/main/README.md", "/datasets/user/x/resolve/main/data/b.txt"
    assert [ask(hub, "HEAD", readme)[0], ask(hub, "GET", readme)[0], ask(hub, "GET", other)[0]] == [200, 418, 200]
    hub.faults.clear()
    assert ask(hub, "GET", readme)[0] == 200


@pytest.mark.parametrize("wrong", [{"route": "comit", "kind": "drop"}, {"route": "commit", "kind": "explode"}])
def test_a_fault_that_could_never_happen_is_refused(hub: HubServer, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"comit|explode"):
        hub.faults.add(**wrong)


def test_an_upload_cut_in_the_middle_stores_nothing(hub: HubServer) -> None:
    hub.faults.add("put", "drop", at=1000)
    with pytest.raises(ConnectionError):
        ask(hub, "PUT", hub.signed(f"/lfs/{LARGE_ID}"), LARGE, token=None)
    assert (hub.log[0].status, hub.log[0].bytes_in) == (None, 1000)
    assert not hub.store.has_large(LARGE_ID)
    assert list((hub.store.root / "incoming").iterdir()) == []
