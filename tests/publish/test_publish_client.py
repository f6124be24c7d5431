from __future__ import annotations

import functools
import http.server
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from builder.errors import HubError, OptionError
from builder.publish import patience
from builder.publish.client import HubClient, Refusal, _CountingFile, explain, quiet_client
from builder.publish.patience import Patience


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


def refusal_of(answer: tuple[int, dict[str, str], bytes] | None) -> Refusal:
    """What the client installed here makes of an answer, and we of that."""
    with server(answer) as endpoint, pytest.raises(Exception) as caught:
        HfApi(endpoint=endpoint, token=False).dataset_info("user/x")
    found = explain(caught.value)
    assert found is not None, repr(caught.value)
    return found


MESSAGE = b'{"error": "said so"}'


@pytest.mark.parametrize(
    ("answer", "status", "code", "wait", "passing"),
    [
        ((503, {}, MESSAGE), 503, "", 0, True),
        ((429, {"Retry-After": "7"}, MESSAGE), 429, "", 7, True),
        ((429, {"RateLimit": '"api";r=0;t=55', "Retry-After": "7"}, MESSAGE), 429, "", 55, True),
        ((429, {"RateLimit": '"api";r=9;t=55', "Retry-After": "7"}, MESSAGE), 429, "", 7, True),
        ((429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, MESSAGE), 429, "", 0, True),
        ((429, {"Retry-After": "soon"}, MESSAGE), 429, "", 0, True),
        ((503, {"RateLimit": '"api";r=0;t=55', "Retry-After": "7"}, MESSAGE), 503, "", 7, True),
        ((500, {"RateLimit": '"api";r=0;t=55', "Retry-After": "7"}, MESSAGE), 500, "", 0, True),  # no rate limit
        ((409, {}, MESSAGE), 409, "", 0, True),
        ((412, {}, MESSAGE), 412, "", 0, True),
        ((404, {"X-Error-Code": "RepoNotFound"}, MESSAGE), 404, "RepoNotFound", 0, False),
        ((401, {}, MESSAGE), 401, "", 0, False),
        ((403, {}, MESSAGE), 403, "", 0, False),
        ((400, {}, MESSAGE), 400, "", 0, False),
        ((200, {}, b'{"id": '), 0, "", 0, True),  # cut in the middle, but the length says so
        ((200, {"Content-Length": "900"}, b'{"id": "user/x"}'), 0, "", 0, True),  # cut short
        (None, 0, "", 0, True),
    ],
)
def test_what_the_client_raises_is_told_apart(answer: Any, status: int, code: str, wait: float, passing: bool) -> None:
    found = refusal_of(answer)
    assert (found.status, found.code, found.wait, found.passing) == (status, code, wait, passing)
    assert "said so" in found.said or status == 0


def test_a_date_to_wait_for_is_some_seconds_from_now() -> None:
    found = explain(answered(503, Retry_After=formatdate(time.time() + 90, usegmt=True)))
    assert found is not None
    assert 60 < found.wait <= 90


@pytest.mark.parametrize("token", ["", " \n", "hf_se\ncret", "hf_s\x00ecret", "hf_sécret"])
def test_what_cannot_be_a_token_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(OptionError, match=r"token=.*printable") as caught:
        HubClient("user/x", token)
    assert "cret" not in str(caught.value)


def test_a_line_end_is_no_part_of_a_token() -> None:
    assert HubClient("user/x", " hf_secret\r\n")._api.token == "hf_secret"


def test_nobody_listening_may_pass() -> None:
    with server() as endpoint:
        pass
    with pytest.raises(Exception) as caught:
        HfApi(endpoint=endpoint, token=False).dataset_info("user/x")
    found = explain(caught.value)
    assert found is not None
    assert found.passing


def wrapped(cause: BaseException) -> BaseException:
    error = RuntimeError("Error while uploading 'data/x' to the Hub.")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (wrapped(ConnectionError("reset")), True),
        (TimeoutError("slow"), True),
        (RuntimeError("Data processing error: CAS service error"), True),  # hf_xet, of old
        (ConnectionError("HTTP status client error (401 Unauthorized) for url (http://x/xet-write-token)"), False),
        (ConnectionError("HTTP status client error (429 Too Many Requests) for url (http://x)"), True),
        (ValueError("Invalid metadata in README.md"), False),
        (json.JSONDecodeError("no JSON", "", 0), True),
        (FileNotFoundError(2, "No such file"), None),
        (KeyError("files"), None),
        (HubError("a", "b", "c"), None),
    ],
)
def test_errors_without_an_answer_are_told_apart(error: BaseException, passing: bool | None) -> None:
    found = explain(error)
    assert (found and found.passing) is passing


def test_an_upload_that_got_an_answer_is_judged_by_it() -> None:
    class Response:
        status_code, headers = 403, {"X-Error-Message": "no"}

    cause = OSError("of the client")
    cause.response = Response()  # type: ignore[attr-defined]
    found = explain(wrapped(cause))
    assert (found and (found.status, found.said)) == (403, "HTTP 403, no")


def test_a_failure_met_while_another_was_handled_is_judged_by_itself() -> None:
    try:
        raise answered(404, X_Error_Code="RepoNotFound")
    except HfHubHTTPError:
        with pytest.raises(ConnectionError) as caught:
            raise ConnectionError("reset") from None
    caught.value.__suppress_context__ = False
    found = explain(caught.value)
    assert (found and (found.status, found.passing)) == (0, True)


def test_a_name_that_cannot_be_is_refused_before_anything_is_asked() -> None:
    for name in ("user/x/y", "user/--x", "", "us er/x"):
        with pytest.raises(OptionError, match="repo_id"):
            HubClient(name, None)


def test_a_repository_that_somebody_else_is_just_making_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with server((409, {}, MESSAGE)) as endpoint:
        monkeypatch.setattr(huggingface_hub, "HfApi", functools.partial(HfApi, endpoint))
        with pytest.raises(ConnectionError, match="no repository is named") as caught:
            HubClient("user/x", "hf_token").create(private=True)
    found = explain(caught.value)
    assert found is not None
    assert found.passing


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


class PassingError(ConnectionError):
    pass


def waiting(monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], list[str], Patience]:
    slept: list[float] = []
    said: list[str] = []
    monkeypatch.setattr(patience.time, "sleep", slept.append)
    return slept, said, Patience(lambda: "Go on.", said.append)


def test_what_passes_is_ridden_out(monkeypatch: pytest.MonkeyPatch) -> None:
    slept, said, rider = waiting(monkeypatch)
    answers: list[Any] = [PassingError("reset"), PassingError("reset"), "done"]

    def call() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    assert rider.ride_out("sending x", call) == "done"
    assert slept == [1, 2]
    assert said == [], "short waits are not worth a word"


def failing(error: Exception) -> Any:
    def call() -> None:
        raise error

    return call


def test_there_is_an_end_to_it_and_a_way_on(monkeypatch: pytest.MonkeyPatch) -> None:
    slept, said, rider = waiting(monkeypatch)
    with pytest.raises(HubError, match=r"sending x: PassingError: reset \(6 tries in \d+ s\)\. Go on\.") as caught:
        rider.ride_out("sending x", failing(PassingError("reset")))
    assert isinstance(caught.value.__cause__, PassingError)
    assert slept == list(patience.PAUSES)
    assert len(said) == 2, "of 8 and 16 s"


def answered(status: int, **headers: str) -> Exception:
    class Response:
        status_code = status

    Response.headers = {name.replace("_", "-"): value for name, value in headers.items()}  # type: ignore[attr-defined]
    error = HfHubHTTPError.__new__(HfHubHTTPError)
    error.response = Response()  # type: ignore[assignment]
    error.server_message = "said"
    return error


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (answered(401), "Log in"),
        (answered(403), "token that may write"),
        (answered(404, X_Error_Code="RepoNotFound"), "Check the name"),
        (answered(404, X_Error_Code="RevisionNotFound"), "Check the revision"),
        (answered(400), "Go on."),
    ],
)
def test_a_plain_no_is_taken_at_once(error: Exception, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slept, _, rider = waiting(monkeypatch)
    with pytest.raises(HubError, match=advice):
        rider.ride_out("sending x", failing(error))
    assert slept == []


def test_the_hub_may_ask_for_time_within_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    slept, said, rider = waiting(monkeypatch)
    with pytest.raises(HubError, match="6 tries"):
        rider.ride_out("sending x", failing(answered(429, Retry_After="100")))
    assert slept == [101] * 5
    assert said[0] == "sending x: HTTP 429, said. Trying again in 101 s."
    slept.clear()
    with pytest.raises(HubError, match="it asks to wait 86,400 s"):
        rider.ride_out("sending x", failing(answered(429, Retry_After="86400")))
    assert slept == []


def test_an_error_of_our_own_is_none_of_the_hubs(monkeypatch: pytest.MonkeyPatch) -> None:
    slept, _, rider = waiting(monkeypatch)
    with pytest.raises(KeyError):
        rider.ride_out("sending x", failing(KeyError("x")))
    assert slept == []
