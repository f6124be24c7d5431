"""Repeat calls to the Hub that may succeed later. The error for a call that fails says what to do next."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from builder.base.errors import HubError
from builder.hub.refusals import Refusal, explain

Result = TypeVar("Result")

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before the second, third … try. In these 31 seconds a server can restart, or a network can come back."""

LONGEST_WAIT = 3600.0
"""The longest wait, in seconds, that the Hub may ask for. The Hub limits requests per five minutes and per hour."""

_WORTH_SAYING = 5.0  # seconds


class Patience:
    """Calls the Hub, and calls again after a failure that may pass. Thread-safe.

    ``way_on``: gives the end of an error message: what is done, and how to go on. ``say``: shows a line about a long
    wait.
    """

    def __init__(self, way_on: Callable[[], str], say: Callable[[str], None]) -> None:
        self._way_on, self._say = way_on, say

    def ride_out(self, tried: str, call: Callable[[], Result]) -> Result:
        """Returns what ``call`` returns. ``tried``: what the call does, for messages. Raises HubError if the Hub
        refuses, or fails too often."""
        started = time.monotonic()
        failed = 0
        while True:
            try:
                return call()
            except Exception as error:  # noqa: PERF203 - a call takes longer than that
                refusal = explain(error)
                if refusal is None:
                    raise
                failed += 1
                if failed >= refusal.tries or refusal.wait > LONGEST_WAIT:
                    raise self._given_up(tried, refusal, failed, time.monotonic() - started) from error
                self._wait(tried, refusal, PAUSES[failed - 1])

    def _wait(self, tried: str, refusal: Refusal, pause: float) -> None:
        seconds = max(pause, refusal.wait + 1 if refusal.wait else 0)  # the Hub rounds what it asks for
        if seconds > _WORTH_SAYING:
            self._say(f"{tried}: {refusal.said}. Trying again in {seconds:.0f} s.")
        time.sleep(seconds)

    def _given_up(self, tried: str, refusal: Refusal, failed: int, seconds: float) -> HubError:
        advice = _ADVICE.get(refusal.code) or _ADVICE.get(str(refusal.status))
        if not refusal.passing:
            return HubError(tried, refusal.said, advice or self._way_on())
        if refusal.wait > LONGEST_WAIT:
            return HubError(tried, f"{refusal.said}; the Hub asks to wait {refusal.wait:,.0f} s", self._way_on())
        return HubError(tried, f"{refusal.said} ({failed} tries in {seconds:.0f} s)", self._way_on())


_WRITE = "Use a token with write access to the repository: https://huggingface.co/settings/tokens."
_BILLING = "https://huggingface.co/settings/billing"

_ADVICE = {
    "400": "The Hub will refuse the same request again. Correct what it names, then run the same command again.",
    "401": "Log in with `hf auth login`, set HF_TOKEN, or give --token.",
    "403": _WRITE,
    "413": (
        "The Hub does not take a file or a request of this size. If the file is a shard, convert into a new OUT with a "
        "smaller --max-shard-size. If it is not a shard, shorten README.md."
    ),
    "CardRefused": (
        "Correct the YAML between the two --- lines at the top of README.md. If you edited README.md on the Hub, "
        "correct it on the repository's page. If you did not, correct it in OUT. Then run the same command again."
    ),
    "StorageLimit": (
        f"The account has no room for it. Free some space, or buy more, at {_BILLING}. Then run the same command "
        "again: it goes on where it stopped."
    ),
    "XetRefused": (
        f"{_WRITE} If the token has write access, check that the account has room for private files: {_BILLING}"
    ),
    "Disabled": "The Hub has disabled the repository. The repository's page says why, and whom to ask.",
    "Offline": "Unset HF_HUB_OFFLINE, then run the same command again.",
    "GatedRepo": "Ask for access on the repository's page. Then use a token that has access.",
    "RepoNotFound": (
        "Check the name. Check also that the token may see the repository: the Hub says of a private repository that "
        "it does not exist."
    ),
    "RevisionNotFound": "Check the revision. A push makes a missing branch. It does not make a missing tag or commit.",
}
