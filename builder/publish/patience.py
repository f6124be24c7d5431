"""Calls to the Hub, made again when that can help, and given up with a message that says how to go on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from builder.errors import HubError
from builder.publish.client import Refusal, explain

Result = TypeVar("Result")

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before the second, third … try: half a minute, in which a server restarts or a network comes back."""

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
        for pause in (*PAUSES, None):
            try:
                return call()
            except Exception as error:  # noqa: PERF203 - a call takes longer than that
                refusal = explain(error)
                if refusal is None:
                    raise
                if not refusal.passing or refusal.wait > LONGEST_WAIT or pause is None:
                    raise self._given_up(tried, refusal, time.monotonic() - started) from error
                self._wait(tried, refusal, pause)
        raise AssertionError("the last pause is None")

    def _wait(self, tried: str, refusal: Refusal, pause: float) -> None:
        seconds = max(pause, refusal.wait + 1 if refusal.wait else 0)  # as the Hub rounds what it asks for
        if seconds > _WORTH_SAYING:
            self._say(f"{tried}: {refusal.said}. Trying again in {seconds:.0f} s.")
        time.sleep(seconds)

    def _given_up(self, tried: str, refusal: Refusal, seconds: float) -> HubError:
        if not refusal.passing:
            return HubError(tried, refusal.said, _ADVICE.get(refusal.code or str(refusal.status)) or self._way_on())
        if refusal.wait > LONGEST_WAIT:
            return HubError(tried, f"{refusal.said}; it asks to wait {refusal.wait:,.0f} s", self._way_on())
        said = f"{refusal.said} ({len(PAUSES) + 1} tries in {seconds:.0f} s)"
        return HubError(tried, said, self._way_on())


_ADVICE = {
    "401": "Log in with `hf auth login`, set HF_TOKEN, or give --token.",
    "403": "Use a token that may write there: https://huggingface.co/settings/tokens.",
    "GatedRepo": "Ask for access on the repository's page, and use a token that has it.",
    "RepoNotFound": "Check the name, and that the token may see it: a private repository looks like none to others.",
    "RevisionNotFound": "Check the revision: a branch is made where it is missing, a tag or a commit is not.",
}
