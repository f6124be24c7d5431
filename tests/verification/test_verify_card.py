"""The three states of README.md in a converted folder that are no problem, and what is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builder.base.errors import AccessError, OutputError
from builder.base.options import ConvertOptions
from builder.conversion.convert import convert
from builder.hub.push import push
from builder.verification import card as verify_card
from builder.verification.verify import Verification, describe_verification, verify
from tests.hub.server import HubServer
from tests.hub.test_push import rewrite_card
from tests.pushes import REPO, push_here
from tests.sources import Source, make_source

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]

NOTE = "README.md was edited (or pushed elsewhere) after it was made. laion6m's part is unchanged."


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return make_source(tmp_path_factory.mktemp("card") / "src", faults=["image_missing", "blank_caption"])


@pytest.fixture(scope="module")
def made(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("card-out") / "out"
    convert(str(source.path), str(out), num_proc=1, quiet=True)
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def check(out: Path, **options: Any) -> Verification:
    return verify(str(out), num_proc=1, quiet=True, **options)


def edit(out: Path, change: Callable[[str], str]) -> None:
    card = out / "README.md"
    before = card.read_text()
    card.write_text(change(before))
    assert card.read_text() != before


def test_the_card_of_the_manifest_needs_no_word(out: Path) -> None:
    assert (check(out).ok, check(out).notes) == (True, ())


@pytest.mark.slow
@pytest.mark.parametrize("format", ["parquet", "arrow", "webdataset"])
def test_the_card_that_a_push_left_needs_none_either(
    format: str, source: Source, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    convert(str(source.path), str(out), ConvertOptions(format=format), num_proc=1, quiet=True)
    pristine = (out / "README.md").read_bytes()
    push_here(hub, monkeypatch)
    push(str(out), REPO, quiet=True)
    assert (out / "README.md").read_bytes() != pristine, "it names the repository now"
    assert (check(out).ok, check(out).notes) == (True, ())
    rewrite_card(hub, b"<!-- laion6m:begin", b"Their words.\n\n<!-- laion6m:begin")
    rewrite_card(hub, b"license: other", b"license: cc-by-4.0\ntags:\n- theirs")
    push(str(out), REPO, quiet=True)
    assert "Their words." in (out / "README.md").read_text()
    assert (check(out, source=str(source.path)).ok, check(out).notes) == (True, ())
    shutil.rmtree(out / ".laion6m")  # without the record it is an edited card
    assert (check(out).ok, check(out).notes) == (True, (NOTE,))


def lay_out_anew(text: str) -> str:
    """As a page that reads YAML and writes it again does."""
    import yaml

    front, _, body = text.removeprefix("---\n").partition("---\n")
    return f"---\n{yaml.safe_dump(yaml.safe_load(front), sort_keys=True, indent=4)}---\n{body}"


EDITS: dict[str, Callable[[str], str]] = {
    "text below": lambda text: f"{text}\nMy words.\n",
    "text above": lambda text: text.replace("<!-- laion6m:begin", "# Mine\n\n<!-- laion6m:begin"),
    "another licence": lambda text: text.replace("license: other", "license: cc-by-4.0"),
    "further metadata": lambda text: text.replace("configs:", "tags:\n- mine\nconfigs:"),
    "another name": lambda text: text.replace("pretty_name: laion6m", "pretty_name: Photographs"),
    "lines of Windows": lambda text: f"{text}\nMy words.\n".replace("\n", "\r\n"),
    "YAML laid out anew": lambda text: lay_out_anew(text) + "\nMy words.\n",
}


@pytest.mark.parametrize("change", EDITS.values(), ids=EDITS)
def test_a_card_edited_by_its_owner_is_a_note(out: Path, change: Callable[[str], str]) -> None:
    edit(out, change)
    result = check(out)
    assert (result.ok, result.problems, result.notes) == (True, (), (NOTE,))
    assert describe_verification(result).endswith(NOTE)
    assert result.to_json()["notes"] == [NOTE]


def test_a_card_edited_since_it_was_pushed_is_a_note(
    out: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_here(hub, monkeypatch)
    push(str(out), REPO, quiet=True)
    edit(out, EDITS["text below"])
    assert (check(out).problems, check(out).notes) == ((), (NOTE,))


def test_an_edited_card_that_another_version_pushed_in_other_words_is_a_note(
    out: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from builder.store import card

    push_here(hub, monkeypatch)
    with monkeypatch.context() as newer:
        head = card._head
        newer.setattr(card, "_head", lambda facts: head(facts) + "\nIn other words.\n")
        push(str(out), REPO, quiet=True)
    assert "In other words." in (out / "README.md").read_text()
    assert (check(out).problems, check(out).notes) == ((), ())
    edit(out, EDITS["text below"])
    assert (check(out).problems, check(out).notes) == ((), (NOTE,))
    edit(out, lambda text: text.replace("In other words.", "In my words."))
    assert not check(out).ok


WRONG: dict[str, tuple[Callable[[str], str], str]] = {
    "a count": (lambda text: text.replace("num_examples: ", "num_examples: 1"), "laion6m's part was changed"),
    "a size": (lambda text: text.replace("download_size: ", "download_size: 1"), "laion6m's part was changed"),
    "a feature": (lambda text: text.replace("dtype: int32", "dtype: int64"), "laion6m's part was changed"),
    "no dataset_info": (lambda text: text.replace("dataset_info:", "info:"), "laion6m's part was changed"),
    "the data files": (lambda text: text.replace("data/train-*", "data/*"), "laion6m's part was changed"),
    "the size category": (lambda text: text.replace("- n<1K", "- 1K<n<10K"), "laion6m's part was changed"),
    "a made sentence": (lambda text: text.replace("belong to their owners", "are free"), "laion6m's part was changed"),
    "a cut comment": (lambda text: text.replace("<!-- laion6m:end -->", ""), "laion6m's part is missing"),
    "no card at all": (lambda text: "# Mine\n", "laion6m's part is missing"),
    "empty": (lambda text: "", "laion6m's part is missing"),
    "broken YAML": (lambda text: text.replace("license: other", "license: [\x1b"), "YAML cannot be read"),
}


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG)
def test_any_other_card_is_a_problem(out: Path, change: Callable[[str], str], words: str) -> None:
    edit(out, change)
    for _ in range(2):  # and with words of the owner's, too
        (problem,) = check(out).problems
        assert problem.startswith("README.md: ")
        assert words in problem
        assert problem.isprintable()
        edit(out, EDITS["text below"])


def test_converting_again_mends_the_made_part_and_keeps_the_owners(source: Source, out: Path) -> None:
    manifest = (out / "meta/manifest.json").read_bytes()
    edit(out, EDITS["text below"])
    edit(out, WRONG["a made sentence"][0])
    convert(str(source.path), str(out), num_proc=1, quiet=True)
    assert (out / "README.md").read_text().endswith("\nMy words.\n")
    assert (check(out).problems, check(out).notes) == ((), (NOTE,))
    assert (out / "meta/manifest.json").read_bytes() == manifest
    edit(out, WRONG["broken YAML"][0])
    with pytest.raises(OutputError, match=r"README\.md cannot be read"):
        convert(str(source.path), str(out), num_proc=1, quiet=True)


def test_a_record_of_another_dataset_makes_no_card_lawful(
    source: Source, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OUT was emptied but for its bookkeeping of pushes, and made again otherwise."""
    push_here(hub, monkeypatch)
    first, second = tmp_path / "first", tmp_path / "second"
    convert(str(source.path), str(first), num_proc=1, quiet=True)
    push(str(first), REPO, quiet=True)
    other = make_source(tmp_path / "other", faults=["blank_caption"])
    convert(str(other.path), str(second), num_proc=1, quiet=True)
    shutil.copy(first / ".laion6m/pushed-cards.json", second / ".laion6m")
    shutil.copy(first / "README.md", second)
    (problem,) = check(second).problems
    assert problem.startswith("README.md: ")


def test_a_card_that_may_not_be_read_is_an_error_of_access(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(verify_card, "open", refuse, raising=False)
    with pytest.raises(AccessError, match=r"README\.md: Permission denied"):
        check(out)
