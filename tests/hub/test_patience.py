from __future__ import annotations

from typing import Any

import pytest

from builder.base.errors import HubError
from builder.hub import patience
from builder.hub.patience import Patience
from tests.hub.test_refusals import answered, upload_that_failed


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


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (answered(401), "Log in"),
        (answered(403), "token with write access"),
        (answered(403, said="Access to this resource is disabled."), "has disabled the repository"),
        (answered(403, said="Private repository storage limit reached"), "no room for it"),
        (answered(413), "smaller --max-shard-size"),
        (answered(404, X_Error_Code="RepoNotFound"), "Check the name"),
        (answered(404, X_Error_Code="RevisionNotFound"), "Check the revision"),
        (answered(400), "Correct what it names"),
        (answered(418), "Go on."),
    ],
)
def test_a_plain_no_is_taken_at_once(error: Exception, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slept, _, rider = waiting(monkeypatch)
    with pytest.raises(HubError, match=advice):
        rider.ride_out("sending x", failing(error))
    assert slept == []


def test_an_upload_whose_address_expired_is_tried_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    slept, _, rider = waiting(monkeypatch)
    with pytest.raises(HubError, match=r"\(3 tries in \d+ s\)\. Go on\."):
        rider.ride_out("sending x", failing(upload_that_failed(403, "PUT", "/lfs/1")))
    assert slept == [1, 2]


def test_failures_of_two_kinds_share_the_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    slept, _, rider = waiting(monkeypatch)
    kinds = [PassingError("reset"), PassingError("reset"), upload_that_failed(403, "PUT", "/lfs/1")]

    def call() -> None:
        raise kinds.pop(0)

    with pytest.raises(HubError, match="3 tries"):
        rider.ride_out("sending x", call)
    assert slept == [1, 2]


def test_the_hub_may_ask_for_time_within_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    slept, said, rider = waiting(monkeypatch)
    with pytest.raises(HubError, match="6 tries"):
        rider.ride_out("sending x", failing(answered(429, Retry_After="100")))
    assert slept == [101] * 5
    assert said[0] == "sending x: HTTP 429, said. Trying again in 101 s."
    slept.clear()
    with pytest.raises(HubError, match="the Hub asks to wait 86,400 s"):
        rider.ride_out("sending x", failing(answered(429, Retry_After="86400")))
    assert slept == []


def test_an_error_of_our_own_is_none_of_the_hubs(monkeypatch: pytest.MonkeyPatch) -> None:
    slept, _, rider = waiting(monkeypatch)
    with pytest.raises(KeyError):
        rider.ride_out("sending x", failing(KeyError("x")))
    assert slept == []
