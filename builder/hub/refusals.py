"""What an exception of the Hub's client means, and how often to try the call again."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from builder.base.urls import say

TRIES = 6
"""How often to try a call whose failure may pass."""

TRIES_OF_SIGNED = 3
"""How often to try an upload whose signed address is refused or not given. Most often the address has expired. Each try
asks for a new one."""

_PASSING = {408, 409, 412, 425, 429, 500, 502, 503, 504}
"""HTTP statuses of failures that may pass. 409 and 412: somebody else has committed."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call failed. ``status``: of HTTP, 0 if no answer came. ``code``: the Hub's own name of
    the failure ("RepoNotFound"), or one of ours. ``said``: the message. ``wait``: seconds that the Hub asks to wait.
    ``tries``: how often to try such a call; 1 if another try cannot help."""

    status: int
    code: str
    said: str
    wait: float
    tries: int

    @property
    def passing(self) -> bool:
        return self.tries > 1


def explain(error: BaseException) -> Refusal | None:
    """What an exception of the client means. None for one that is not about the Hub or the network."""
    chain = _chain(error)
    for each in chain:
        response = getattr(each, "response", None)
        if response is not None and hasattr(response, "status_code"):
            headers, status = response.headers, int(response.status_code)
            said = say(f"{getattr(each, 'server_message', None) or headers.get('X-Error-Message') or each}")
            code = _code(said, status, headers.get("X-Error-Code", ""))
            wait, tries = _asked_wait(headers, status), _tries(status, response)
            return Refusal(status, code, f"HTTP {status}, {said}", wait, tries)
    said = say(f"{type(chain[-1]).__name__}: {chain[-1]}")
    stated = re.search(r"status (?:client error |server error )?\((\d{3})", said)  # as hf_xet puts it
    if stated:
        status = int(stated[1])
        tries = TRIES if status in _PASSING else 1
        return Refusal(status, "XetRefused" if status == 403 else "", said, 0, tries)
    names = {type(each).__name__ for each in chain}
    if "OfflineModeIsEnabled" in names:
        return Refusal(0, "Offline", said, 0, 1)
    if names & {"XetAuthenticationError", "LocalTokenNotFoundError"}:
        return Refusal(401, "", said, 0, 1)
    xet = re.search(r"\bCAS\b|(?i:\bxet)|^ConnectionError: Network error: ", said)  # hf_xet's, without a status
    broken = (_transport_error(), ConnectionError, TimeoutError, json.JSONDecodeError)
    # A RuntimeError comes from a connection pool that another thread has just closed.
    if xet or any(isinstance(each, broken) for each in chain) or isinstance(error, RuntimeError):
        return Refusal(0, "", said, 0, TRIES)
    if isinstance(error, ValueError):  # a card that is refused, an answer that is none
        code = _code(said, 0)
        refused = not code and "LFS batch API returned errors" in said  # whose status the client does not pass on
        return Refusal(0, code, said, 0, TRIES_OF_SIGNED if refused else 1)
    return None


def _code(said: str, status: int, code: str = "") -> str:
    """The Hub's own name of the failure (``code``). If it gives none: ours, found in its message, or ""."""
    if code:
        return code
    if re.search(r"(?i)metadata", said) and re.search(r"(?i)README|YAML|\bcard\b", said):
        return "CardRefused"
    if status == 402 or re.search(r"(?i)\b(storage|quota)\b.*\b(limit|exceeded|reached|plan)\b", said):
        return "StorageLimit"
    return "Disabled" if "access to this resource is disabled" in said.lower() else ""


def _tries(status: int, response: Any) -> int:
    """How often to try a call that got this answer. An upload goes to a signed address, which expires. Only uploads are
    PUT requests."""
    method = url = ""
    with suppress(AttributeError, RuntimeError):  # httpx raises the latter if the answer knows no request
        method, url = response.request.method, str(response.request.url)
    if status in (400, 403, 404) and (method == "PUT" or re.search("/complete[-_]multipart", url)):
        return TRIES_OF_SIGNED
    return TRIES if status in _PASSING else 1


def _chain(error: BaseException) -> list[BaseException]:
    """An exception and its causes (``raise … from``), first cause last. ``__context__`` does not count: it may be
    another call's failure."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def _transport_error() -> type[BaseException]:
    """The base of all exceptions of the client's HTTP library: requests before 1.0, then httpx, then httpx2."""
    from huggingface_hub.errors import HfHubHTTPError

    return [base for base in HfHubHTTPError.__mro__ if base.__name__ in ("RequestException", "HTTPError")][-1]


def _asked_wait(headers: Any, status: int) -> float:
    """Seconds that the Hub asks to wait, or 0. From ``RateLimit: "api";r=0;t=5`` of a 429, or from ``Retry-After`` (a
    number or a date) of a 429 or 503. Every answer has a RateLimit. It is the reason only if nothing remains (r=0)."""
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
