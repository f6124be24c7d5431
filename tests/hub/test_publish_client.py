from __future__ import annotations

import functools
import http.server
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import HfApi

from builder.base.errors import OptionError
from builder.hub.client import HubClient, _CountingFile, quiet_client
from builder.hub.refusals import explain

MESSAGE = b'{"error": "said so"}'


@contextmanager
def server(*answers: tuple[int, dict[str, str], bytes] | None) -> Iterator[str]:
    """Gives these answers in turn, None being none at all; its address."""
    left = list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = left.pop(0)
            if answer is None:
                self.close_connection = True
                return
            status, headers, body = answer
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()
            thread.join()


@pytest.mark.parametrize("token", ["", " \n", "hf_se\ncret", "hf_s\x00ecret", "hf_sécret"])
def test_what_cannot_be_a_token_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(OptionError, match=r"token: .*printable") as caught:
        HubClient("user/x", token)
    assert "cret" not in str(caught.value)


def test_a_line_end_is_no_part_of_a_token() -> None:
    assert HubClient("user/x", " hf_secret\r\n")._api.token == "hf_secret"


def test_a_name_that_cannot_be_is_refused_before_anything_is_asked() -> None:
    for name in ("user/x/y", "user/--x", "", "us er/x"):
        with pytest.raises(OptionError, match="repo_id"):
            HubClient(name, None)


def test_a_repository_that_somebody_else_is_just_making_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with server((409, {}, MESSAGE)) as endpoint:
        monkeypatch.setattr(huggingface_hub, "HfApi", functools.partial(HfApi, endpoint))
        with pytest.raises(ConnectionError, match="does not name the repository") as caught:
            HubClient("user/x", "hf_token").create(private=True)
    found = explain(caught.value)
    assert found is not None
    assert found.passing


def test_a_file_that_the_hub_wants_in_the_commit_is_not_asked_about_again(monkeypatch: pytest.MonkeyPatch) -> None:
    client = HubClient("user/x", "hf_token")
    asked: list[Any] = []
    monkeypatch.setattr(client._api, "preupload_lfs_files", lambda **given: asked.extend(given["additions"]))
    addition = client.addition("README.md", b"text")
    client.store(addition, "main", create_pr=False)
    addition._upload_mode = "regular"  # as the Hub has answered
    client.store(addition, "main", create_pr=False)
    assert asked == [addition]


def test_the_clients_bars_are_back_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", None)
    with quiet_client():
        assert are_progress_bars_disabled()
    assert not are_progress_bars_disabled()


def test_a_file_says_how_far_it_has_been_read(tmp_path: Any) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(3_000_000))
    places: list[int] = []
    with _CountingFile(io.FileIO(path), places.append) as file:
        while file.read(1 << 20):
            pass
        file.seek(0)  # as a client does that sends it again
        file.read(10)
    assert places == [1 << 20, 2 << 20, 3_000_000, 3_000_000, 10]
