"""Calls to the Hub, made again when that can help, and given up with a message that says how to go on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from builder.base.errors import HubError
from builder.hub.refusals import Refusal, explain

Result = TypeVar("Result")

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before the second, third … try: half a minute in all, in which a server restarts or a network comes back."""

LONGEST_WAIT = 3600.0
"""Seconds the Hub may ask to wait: its limits are counted by five minutes and by the hour."""

_WORTH_SAYING = 5.0  # seconds


class Patience:
    """``way_on``: what is done and how to go on, asked when a call is given up. ``say``: tells a person of long waits.
    Thread-safe."""

    def __init__(self, way_on: Callable[[], str], say: Callable[[str], None]) -> None:
        self._way_on, self._say = way_on, say

    def ride_out(self, tried: str, call: Callable[[], Result]) -> Result:
        """What ``call`` gives. ``tried``: for messages. Raises HubError when the Hub refuses or has failed too
        often."""
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
        seconds = max(pause, refusal.wait + 1 if refusal.wait else 0)  # as the Hub rounds what it asks for
        if seconds > _WORTH_SAYING:
            self._say(f"{tried}: {refusal.said}. Trying again in {seconds:.0f} s.")
        time.sleep(seconds)

    def _given_up(self, tried: str, refusal: Refusal, failed: int, seconds: float) -> HubError:
        advice = _ADVICE.get(refusal.code) or _ADVICE.get(str(refusal.status))
        if not refusal.passing:
            return HubError(tried, refusal.said, advice or self._way_on())
        if refusal.wait > LONGEST_WAIT:
            return HubError(tried, f"{refusal.said}; it asks to wait {refusal.wait:,.0f} s", self._way_on())
        return HubError(tried, f"{refusal.said} ({failed} tries in {seconds:.0f} s)", self._way_on())


_ADVICE = {
    "400": "The same again would be refused again: mend what it names first.",
    "401": "Log in with `hf auth login`, set HF_TOKEN, or give --token.",
    "403": "Use a token that may write there: https://huggingface.co/settings/tokens.",
    "413": (
        "A file, or a request, is larger than the Hub takes. If it is a shard: convert into a new OUT with a smaller "
        "--max-shard-size. If not: shorten README.md."
    ),
    "CardRefused": (
        "Mend the YAML between the two --- at the top of README.md, in OUT or, if it was edited there, on the "
        "repository's page; then run the same command again."
    ),
    "StorageLimit": (
        "There is no room for it: free some, or get more, at https://huggingface.co/settings/billing; then run the "
        "same command again, which goes on where it stopped."
    ),
    "XetRefused": (
        "Use a token that may write there: https://huggingface.co/settings/tokens. If it may: is there room left for "
        "private files? https://huggingface.co/settings/billing"
    ),
    "Disabled": "The Hub has disabled the repository: its page says why, and whom to ask.",
    "Offline": "Unset HF_HUB_OFFLINE.",
    "GatedRepo": "Ask for access on the repository's page, and use a token that has it.",
    "RepoNotFound": "Check the name, and that the token may see it: a private repository looks like none to others.",
    "RevisionNotFound": "Check the revision: a branch is made where it is missing, a tag or a commit is not.",
}
