"""Records of pushes, kept beside the receipts: which shards are on the Hub, and which cards a push left here.

OUT/.laion6m/
├── pushed/00003.json       the Hub has confirmed that it has shard 3: its file here may be removed
└── pushed-cards.json       for each place of a card, each repository and revision: the card that the last push left
                            both here and on the Hub
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
    """A shard that the Hub has. ``digest``: xxh3-128 of the file, hex. ``sha256``: of the same file, as the Hub gives
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
        """The repository and revision as an hf:// URL, for ``open_dataset``."""
        branch = "" if self.revision == "main" else f"@{self.revision.replace('/', '%2F')}"
        return f"hf://datasets/{self.repo}{branch}"

    @property
    def command(self) -> str:
        """The arguments of ``laion6m push OUT`` that name the repository and its revision."""
        return self.repo if self.revision == "main" else f"{self.repo} --revision {self.revision}"


@dataclass(frozen=True, slots=True)
class PushedCard:
    """A card that a push left here and on the Hub. ``own``: its owner's part. The others are xxh3-128, hex: ``digest``
    of the file, ``made`` of the part that the tool made, ``manifest`` of the manifest it was made from."""

    own: dict[str, Any]
    digest: str
    made: str
    manifest: str


class PushRecords:
    """The records of one OUT. An unreadable record counts as missing: then the shard is made again, or the card
    compared again."""

    def __init__(self, out: str | Folder) -> None:
        self._folder = LocalFolder(out) if isinstance(out, str) else out

    def write_mark(self, mark: PushedMark) -> None:
        """Write down that the Hub has a shard. Only after this may its file be removed. Raises WriteError."""
        write(self._folder, f"{_MARKS}/{mark.number:05d}.json", [seal(asdict(mark))])

    def mark(self, number: int, repo: str, revision: str) -> PushedMark | None:
        """The mark that a repository has this shard at this revision; None if there is none."""
        mark = self._mark(f"{number:05d}.json")
        return mark if mark and (mark.number, mark.repo, mark.revision) == (number, repo, revision) else None

    def marks(self) -> dict[str, PushedMark]:
        """All marks, by the paths of the shards."""
        names = sorted(self._folder.sizes(_MARKS))
        return {mark.path: mark for mark in map(self._mark, names) if mark is not None}

    def write_card(self, place: str, repo: str, card: PushedCard, revision: str = "main") -> None:
        """Write a card's record. ``place``: path of the card, relative to OUT. Raises WriteError."""
        cards = self._cards()
        cards[place] = {**cards.get(place, {}), _key(repo, revision): asdict(card)}
        write(self._folder, _CARDS, [seal({"cards": cards})])

    def cards(self, place: str) -> dict[str, PushedCard]:
        """Repository → card. A revision other than main is in the key: "user/x@v2"."""
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
