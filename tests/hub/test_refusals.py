from __future__ import annotations

import json
import time
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from builder.base.errors import HubError
from builder.hub.refusals import Refusal, explain
from tests.hub.test_publish_client import MESSAGE, server


def refusal_of(answer: tuple[int, dict[str, str], bytes] | None) -> Refusal:
    """What the client installed here makes of an answer, and we of that."""
    with server(answer) as endpoint, pytest.raises(Exception) as caught:
        HfApi(endpoint=endpoint, token=False).dataset_info("user/x")
    found = explain(caught.value)
    assert found is not None, repr(caught.value)
    return found


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


def answered(status: int, said: str = "said", **headers: str) -> Exception:
    class Response:
        status_code = status

    Response.headers = {name.replace("_", "-"): value for name, value in headers.items()}  # type: ignore[attr-defined]
    error = HfHubHTTPError.__new__(HfHubHTTPError)
    error.response = Response()  # type: ignore[assignment]
    error.server_message = said
    return error


def test_a_date_to_wait_for_is_some_seconds_from_now() -> None:
    found = explain(answered(503, Retry_After=formatdate(time.time() + 90, usegmt=True)))
    assert found is not None
    assert 60 < found.wait <= 90


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


def upload_that_failed(status: int, method: str, path: str) -> BaseException:
    """As the client raises what came of a request of an upload. Status 0: no answer."""
    request = SimpleNamespace(method=method, url=f"https://hub.example{path}")
    cause = OSError("of the client") if status else TimeoutError("of the way to it")
    if status:
        cause.response = SimpleNamespace(status_code=status, headers={}, request=request)  # type: ignore[union-attr]
    else:
        cause.request = request  # type: ignore[union-attr]
    return wrapped(cause)


BATCH = "/datasets/user/x.git/info/lfs/objects/batch"


@pytest.mark.parametrize(
    ("status", "method", "path", "tries"),
    [
        (503, "PUT", "/lfs/1", 6),
        (429, "PUT", "/lfs/1", 6),
        (0, "PUT", "/lfs/1", 6),
        (409, "POST", BATCH, 6),
        (503, "GET", "/api/datasets/user/x/tree/main", 6),
        # an address that allows an upload expires: each try asks for a new one
        (403, "PUT", "/lfs/1", 3),
        (400, "PUT", "/lfs/1", 3),
        (404, "PUT", "/parts/1", 3),
        (403, "POST", "/api/complete_multipart", 3),
        (401, "PUT", "/lfs/1", 1),
        (403, "POST", BATCH, 1),
    ],
)
def test_passing_failures_get_six_tries_expired_addresses_three_others_one(
    status: int, method: str, path: str, tries: int
) -> None:
    found = explain(upload_that_failed(status, method, path))
    assert (found and found.tries) == tries


@pytest.mark.parametrize(
    ("error", "status", "code", "tries"),
    [
        (ConnectionError("Network error: HTTP status server error (503 Service Unavailable), domain: x"), 503, "", 6),
        (ConnectionError("Network error: HTTP status client error (403 Forbidden), domain: x"), 403, "XetRefused", 1),
        (ConnectionError("HTTP status client error (429 Too Many Requests) for url (x)"), 429, "", 6),
        (ConnectionError("Network error: Request error: error sending request"), 0, "", 6),
        (RuntimeError("Data processing error: CAS service error"), 0, "", 6),
        (RuntimeError("Cannot send a request, as the client has been closed."), 0, "", 6),
    ],
)
def test_what_hf_xet_says_is_understood(error: Exception, status: int, code: str, tries: int) -> None:
    found = explain(error)
    assert (found and (found.status, found.code, found.tries)) == (status, code, tries)


@pytest.mark.parametrize(
    ("said", "code", "tries"),
    [
        ("LFS batch API returned errors:\nEncountered error for file with OID 1: `try later`", "", 3),
        ("LFS batch API returned errors:\n… `Private repository storage limit reached`", "StorageLimit", 1),
        ("Invalid metadata in README.md.\n- Error: license must be one of", "CardRefused", 1),
        ("Malformed response from server", "", 1),
    ],
)
def test_what_the_client_puts_in_words_alone_is_told_apart(said: str, code: str, tries: int) -> None:
    found = explain(ValueError(said))
    assert (found and (found.code, found.tries)) == (code, tries)


def test_a_failure_met_while_another_was_handled_is_judged_by_itself() -> None:
    try:
        raise answered(404, X_Error_Code="RepoNotFound")
    except HfHubHTTPError:
        with pytest.raises(ConnectionError) as caught:
            raise ConnectionError("reset") from None
    caught.value.__suppress_context__ = False
    found = explain(caught.value)
    assert (found and (found.status, found.passing)) == (0, True)
