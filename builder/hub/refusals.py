"""What the client's exceptions say, and how often a call that ended in one is worth making again."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from builder.base.urls import say

TRIES = 6
"""Of a call that fails for a reason that may pass."""

TRIES_OF_REPEATED = 2
"""The same, of one that the client has by then made six times, over 23 seconds, or hf_xet for minutes."""

_TRIES_OF_SIGNED = 3
"""Of an upload whose address is refused, or not given: it has expired, most often, and each try asks for another."""

_PASSING = {408, 409, 412, 425, 429, 500, 502, 503, 504}
"""Statuses that may be over when the call is made again. 409 and 412: somebody else has committed."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call came to nothing. ``status``: of HTTP, 0 where no answer came. ``code``: the Hub's own word for it
    ("RepoNotFound"), or one of ours. ``wait``: seconds that it asks for. ``tries``: how many such failures of a call
    are enough, 1 where another try is no use."""

    status: int
    code: str
    said: str
    wait: float
    tries: int

    @property
    def passing(self) -> bool:
        return self.tries > 1


def explain(error: BaseException) -> Refusal | None:
    """What an exception of the client says; None for one that is not about the Hub or the way to it."""
    chain = _chain(error)
    for each in chain:
        response = getattr(each, "response", None)
        if response is not None and hasattr(response, "status_code"):
            headers, status = response.headers, int(response.status_code)
            said = say(f"{getattr(each, 'server_message', None) or headers.get('X-Error-Message') or each}")
            code = _code(said, status, headers.get("X-Error-Code", ""))
            tries = _tries(status, _request_of(response))
            return Refusal(status, code, f"HTTP {status}, {said}", _asked_wait(headers, status), tries)
    said = say(f"{type(chain[-1]).__name__}: {chain[-1]}")
    stated = re.search(r"status (?:client error |server error )?\((\d{3})", said)  # as hf_xet puts it
    if stated:
        status = int(stated[1])
        tries = TRIES_OF_REPEATED if status in _PASSING else 1
        return Refusal(status, "XetRefused" if status == 403 else "", said, 0, tries)
    names = {type(each).__name__ for each in chain}
    if "OfflineModeIsEnabled" in names:
        return Refusal(0, "Offline", said, 0, 1)
    if names & {"XetAuthenticationError", "LocalTokenNotFoundError"}:
        return Refusal(401, "", said, 0, 1)
    if re.search(r"\bCAS\b|(?i:\bxet)|^ConnectionError: Network error: ", said):  # hf_xet's, without a status
        return Refusal(0, "", said, 0, TRIES_OF_REPEATED)
    broken = (_transport_error(), ConnectionError, TimeoutError, json.JSONDecodeError)
    if any(isinstance(each, broken) for each in chain):
        requests = (request for each in chain if (request := _request_of(each)) is not None)
        unheeded = _version() < (2, 0) and type(chain[-1]).__name__ == "RemoteProtocolError"  # by its own tries
        return Refusal(0, "", said, 0, TRIES if unheeded else _tries(0, next(requests, None)))
    if isinstance(error, RuntimeError):  # a connection pool that another thread has just closed
        return Refusal(0, "", said, 0, TRIES)
    if isinstance(error, ValueError):  # a card that is refused, an answer that is none
        code = _code(said, 0)
        refused = not code and "LFS batch API returned errors" in said  # whose status the client does not pass on
        return Refusal(0, code, said, 0, _TRIES_OF_SIGNED if refused else 1)
    return None


def _code(said: str, status: int, code: str = "") -> str:
    """The Hub's own word for it, or, where it has none for what it says, one of ours."""
    if code:
        return code
    if re.search(r"(?i)metadata", said) and re.search(r"(?i)README|YAML|\bcard\b", said):
        return "CardRefused"
    if status == 402 or re.search(r"(?i)\b(storage|quota)\b.*\b(limit|exceeded|reached|plan)\b", said):
        return "StorageLimit"
    return "Disabled" if "access to this resource is disabled" in said.lower() else ""


def _tries(status: int, request: tuple[str, str] | None) -> int:
    """How many such failures of a call are enough. ``status``: 0 where no answer came. ``request``: its method and
    address, where they are known."""
    if request is not None and status in (400, 403, 404) and _is_signed(*request):
        return _TRIES_OF_SIGNED
    if status and status not in _PASSING:
        return 1
    return TRIES_OF_REPEATED if request is not None and _is_repeated(*request, status) else TRIES


def _is_signed(method: str, url: str) -> bool:
    """Whether a request is one of an upload, allowed by its address alone and only for a time: no other is a PUT."""
    return method == "PUT" or bool(re.search("/complete[-_]multipart", url))


def _is_repeated(method: str, url: str, status: int) -> bool:
    """Whether the client has made a request again and again by itself before it gave up: a PUT in all versions, the
    others of an upload from 1.3 on, pages of a listing from 2.0 on. Creating a repository, asking about one, and the
    commit: never."""
    if status not in (0, 408, 429, 500, 502, 503, 504):
        return False
    if method == "PUT":
        return status != 429 or _version() >= (1, 3)
    if re.search(r"/preupload/|/info/lfs/objects/|/complete[-_]multipart|/xet-write-token/", url):
        return _version() >= (1, 3)
    return "/tree/" in url and _version() >= (2, 0)


def _version() -> tuple[int, ...]:
    from huggingface_hub import __version__

    return tuple(int(part) for part in re.findall(r"\d+", __version__)[:2])


def _request_of(holder: Any) -> tuple[str, str] | None:
    """Method and address of the request that an answer, or an exception of the transport, is about."""
    try:
        return str(holder.request.method), str(holder.request.url)
    except (AttributeError, RuntimeError):  # httpx raises the latter where none has been set
        return None


def _chain(error: BaseException) -> list[BaseException]:
    """An exception and those that it was raised from, first cause last. (What was merely being handled meanwhile may
    be another call's failure.)"""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def _transport_error() -> type[BaseException]:
    """The base of all that the client's HTTP library raises: requests' before 1.0, then httpx's, then httpx2's."""
    from huggingface_hub.errors import HfHubHTTPError

    return [base for base in HfHubHTTPError.__mro__ if base.__name__ in ("RequestException", "HTTPError")][-1]


def _asked_wait(headers: Any, status: int) -> float:
    """Seconds, from ``RateLimit: "api";r=0;t=5`` of a 429, or ``Retry-After``, a number or a date, of a 429 or a 503;
    else 0. Every answer has a RateLimit: it is why only where nothing remains."""
    limit = re.search(r"\br\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("RateLimit", ""))
    if status == 429 and limit:
        return float(limit[1])
    after = headers.get("Retry-After", "").strip() if status in (429, 503) else ""
    if re.fullmatch(r"[0-9]+", after):
        return float(after)
    try:
        date = parsedate_to_datetime(after)
    except (ValueError, TypeError):
        return 0.0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or timezone.utc) - datetime.now(timezone.utc)).total_seconds())
