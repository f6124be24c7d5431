"""What pushes left to be known, beside the receipts: which shards are on the Hub, and which cards were brought here.

OUT/.laion6m/
├── pushed/00003.json       shard 3 is on the Hub, as the Hub has confirmed: its file here may be gone
└── pushed-cards.json       of each place a card is kept, each repository and revision: the card that the last push left
                            in both
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from builder.base import schema
from builder.store.folders import Folder, LocalFolder, write
from builder.store.seals import seal, unseal

_MARKS = f"{schema.WORK}/pushed"
_CARDS = f"{schema.WORK}/pushed-cards.json"


@dataclass(frozen=True, slots=True)
class PushedMark:
    """A shard that the Hub has. ``digest``: xxh3-128 of the file, hex; ``sha256``: the same file's, as the Hub states
    it."""

    number: int
    path: str
    size: int
    digest: str
    sha256: str
    repo: str
    revision: str

    @property
    def url(self) -> str:
        """The repository, as ``open_dataset`` takes it."""
        branch = "" if self.revision == "main" else f"@{self.revision.replace('/', '%2F')}"
        return f"hf://datasets/{self.repo}{branch}"

    @property
    def command(self) -> str:
        """The arguments of ``laion6m push OUT`` that mean the repository and its revision."""
        return self.repo if self.revision == "main" else f"{self.repo} --revision {self.revision}"


@dataclass(frozen=True, slots=True)
class PushedCard:
    """A card that a push left here and on the Hub. ``own``: its owner's part; ``digest``: xxh3-128 of the file, hex;
    ``made``: of the part that the tool made; ``manifest``: of the manifest it was made from."""

    own: dict[str, Any]
    digest: str
    made: str
    manifest: str


class PushRecords:
    """Of one OUT. What cannot be read is as if it were not there: then a shard is made again, a card compared anew."""

    def __init__(self, out: str | Folder) -> None:
        self._folder = LocalFolder(out) if isinstance(out, str) else out

    def write_mark(self, mark: PushedMark) -> None:
        """Note that the Hub has a shard. Only then may its file be removed. Raises WriteError."""
        write(self._folder, f"{_MARKS}/{mark.number:05d}.json", [seal(asdict(mark))])

    def mark(self, number: int, repo: str, revision: str) -> PushedMark | None:
        """The mark that a repository has a shard."""
        mark = self._mark(f"{number:05d}.json")
        return mark if mark and (mark.number, mark.repo, mark.revision) == (number, repo, revision) else None

    def marks(self) -> dict[str, PushedMark]:
        """All marks, by the paths of the shards."""
        names = sorted(self._folder.sizes(_MARKS))
        return {mark.path: mark for mark in map(self._mark, names) if mark is not None}

    def write_card(self, place: str, repo: str, card: PushedCard, revision: str = "main") -> None:
        """``place``: of the card, relative to OUT. Raises WriteError."""
        cards = self._cards()
        cards[place] = {**cards.get(place, {}), _key(repo, revision): asdict(card)}
        write(self._folder, _CARDS, [seal({"cards": cards})])

    def cards(self, place: str) -> dict[str, PushedCard]:
        """By repository, and revision where that is another than main: "user/x@v2"."""
        found = {}
        with suppress(TypeError, AttributeError):
            for key, fields in self._cards().get(place, {}).items():
                found[str(key)] = PushedCard(**fields)
        return found

    def card(self, place: str, repo: str, revision: str) -> PushedCard | None:
        return self.cards(place).get(_key(repo, revision))

    def _mark(self, name: str) -> PushedMark | None:
        with suppress(ValueError, TypeError, OSError):
            return PushedMark(**unseal(self._folder.read(f"{_MARKS}/{name}") or b""))
        return None

    def _cards(self) -> dict[str, Any]:
        with suppress(ValueError, KeyError, TypeError, OSError):
            return dict(unseal(self._folder.read(_CARDS) or b"")["cards"])
        return {}


def _key(repo: str, revision: str) -> str:
    return repo if revision == "main" else f"{repo}@{revision}"  # no repository's name has an @
