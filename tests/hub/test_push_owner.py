"""What the owner of a dataset meets when they push it: names, rights, room, and what others do to the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.base.errors import HubError, OptionError, OutputError
from builder.hub import publisher as hub_module
from builder.hub.push import push
from builder.hub.stream_out import convert_and_push
from builder.jobs.demo import demo
from builder.verification.verify import verify
from tests.hub.server import OTHER_TOKEN, READ_TOKEN, HubServer
from tests.hub.test_push import UPLOADS, rewrite_card
from tests.pushes import REPO, edit_shard, here, push_here, there

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]


# names ---------------------------------------------------------------------------------------------------------------


def test_a_name_alone_is_one_of_the_tokens_owner(inside: HubServer, out: Path) -> None:
    done = push(str(out), "laion6m", quiet=True)
    assert (done.repo, done.url) == ("user/laion6m", f"{inside.endpoint}/datasets/user/laion6m")
    assert there(inside, "user/laion6m") == here(out)
    assert b'load_dataset("user/laion6m"' in inside.store.read("user/laion6m", "README.md")
    assert push(str(out), "laion6m", verify_only=True, quiet=True).ok
    assert push(str(out), REPO, quiet=True).changed == 0, "it is the same one"


def test_a_name_alone_makes_nothing_where_it_is_not_known_whose_it_is(
    inside: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    push_here(inside, monkeypatch, "hf_nobodysTokenAtAll")
    with pytest.raises(HubError, match=r"asking the Hub for the owner of laion6m: .*Log in"):
        push(str(out), "laion6m", quiet=True)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(HubError, match=r"asking the Hub for the owner of laion6m: .*Log in"):
        push(str(out), "laion6m", quiet=True)
    with pytest.raises(OptionError, match="repo_id"):
        push(str(out), "lai on6m", quiet=True)
    assert inside.requests("create_repo", "info") == []


def test_a_repository_that_was_renamed_is_pushed_to_by_its_old_name_and_the_new_one_is_said(
    inside: HubServer, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(str(out), REPO, quiet=True)
    inside.store.rename(inside.store.repo(REPO), "org/renamed")
    edit_shard(out)
    assert push(str(out), REPO).changed == 2
    assert "user/laion6m is now called org/renamed." in capsys.readouterr().err
    assert there(inside, "org/renamed") == here(out)
    assert inside.store.find("dataset", REPO) is None
    assert push(str(out), REPO, verify_only=True).ok
    assert capsys.readouterr().err.count("is now called org/renamed.") == 1


def test_a_proposal_to_another_branch_is_refused_before_anything_is_asked(inside: HubServer, out: Path) -> None:
    with pytest.raises(OptionError, match=r"create_pr: a pull request always goes to main\. Leave out the revision v2"):
        push(str(out), REPO, create_pr=True, revision="v2", quiet=True)
    assert inside.requests() == []


# the card ------------------------------------------------------------------------------------------------------------

OWN_CONFIG = b"""configs:
- config_name: scores
  data_files: scores/*.parquet
- config_name: same
  data_files:
  - split: train
    path: data/train-*.parquet
"""


def test_configurations_that_the_owner_added_on_the_page_stay(inside: HubServer, out: Path) -> None:
    push(str(out), REPO, quiet=True)
    rewrite_card(inside, b"configs:\n", OWN_CONFIG)
    assert push(str(out), REPO, verify_only=True, quiet=True).ok
    edit_shard(out)
    assert push(str(out), REPO, quiet=True).changed == 3
    card = inside.store.read(REPO, "README.md")
    assert card.count(b"path: data/train-*.parquet") == 2
    assert b"config_name: scores" in card
    assert (out / "README.md").read_bytes() == card
    assert push(str(out), REPO, quiet=True).changed == 0


def test_a_folder_whose_card_has_configurations_of_the_owners_verifies(out: Path) -> None:
    card = out / "README.md"
    card.write_bytes(card.read_bytes().replace(b"configs:\n", OWN_CONFIG))
    result = verify(str(out), num_proc=1, quiet=True)
    assert result.ok
    assert "laion6m's part is unchanged" in result.notes[0]


def test_a_card_that_is_refused_is_to_be_mended(inside: HubServer, out: Path) -> None:
    card = out / "README.md"
    sound = card.read_bytes()
    card.write_bytes(sound.replace(b"license: other", b"license: nonsense"))
    with pytest.raises(
        HubError, match=r"license.*\. Correct the YAML between the two --- lines at the top of README\.md"
    ):
        push(str(out), REPO, quiet=True)
    card.write_bytes(sound)
    headers = {"X-Error-Message": "Invalid YAML metadata in the card"}
    inside.faults.add("commit", "status", status=400, headers=headers)
    with pytest.raises(HubError, match=r"committing to .*\. Correct the YAML between the two ---"):
        push(str(out), REPO, quiet=True)


def test_a_card_that_cannot_be_read_stops_a_conversion_before_it_begins(
    inside: HubServer, made: Path, tmp_path: Path
) -> None:
    repo = inside.store.create(REPO)
    files = repo.commit("main").files | {"README.md": inside.store.put_blob(b"---\na: [\n---\n")}
    inside.store.add_commit(repo, "refs/heads/main", repo.refs["refs/heads/main"], files, "theirs")
    with pytest.raises(OutputError, match=f"the YAML at the top of README.md of {REPO} cannot be read"):
        convert_and_push(str(made.parent / "source"), str(tmp_path / "out"), push_to=REPO, num_proc=1, quiet=True)
    assert not (tmp_path / "out" / "data").exists()


def test_a_conversion_takes_a_name_alone_too(inside: HubServer, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = {"push_to": "laion6m", "delete_pushed": True, "num_proc": 1, "quiet": True}
    _, pushed = convert_and_push(str(made.parent / "source"), str(out), **options)
    assert pushed is not None
    assert pushed.repo == "user/laion6m"
    assert push(str(out), REPO, verify_only=True, quiet=True).ok, "the marks are of the whole name"
    assert convert_and_push(str(made.parent / "source"), str(out), **options)[0].did == 0


# proposals -----------------------------------------------------------------------------------------------------------


def test_only_a_proposal_of_ones_own_that_is_open_is_found_again(
    inside: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(str(out), REPO, public=True, quiet=True)
    edit_shard(out)
    push_here(inside, monkeypatch, OTHER_TOKEN)
    assert push(str(out), REPO, create_pr=True, quiet=True).revision == "refs/pr/1"
    push_here(inside, monkeypatch)
    assert push(str(out), REPO, create_pr=True, quiet=True).revision == "refs/pr/2", "not the other one's"
    monkeypatch.setattr(hub_module, "_PULLS_LOOKED_AT", 1)
    push_here(inside, monkeypatch, OTHER_TOKEN)
    assert push(str(out), REPO, create_pr=True, quiet=True).revision == "refs/pr/1", "though it is not the newest"
    push_here(inside, monkeypatch)
    repo = inside.store.repo(REPO)
    repo.closed = ["refs/pr/2"]
    repo.save()
    assert push(str(out), REPO, create_pr=True, quiet=True).revision == "refs/pr/3", "not one that was turned down"


def test_a_proposal_that_further_edits_go_beyond_is_gone_on_with(inside: HubServer, out: Path) -> None:
    push(str(out), REPO, quiet=True)
    before = there(inside)
    edit_shard(out, 1)
    push(str(out), REPO, create_pr=True, quiet=True)
    edit_shard(out, 2)
    again = push(str(out), REPO, create_pr=True, quiet=True)
    assert (again.revision, again.changed) == ("refs/pr/1", 2)
    assert there(inside, revision="refs/pr/1") == here(out)
    edit_shard(out, 1)  # back to what main has: the proposal says otherwise
    assert push(str(out), REPO, create_pr=True, quiet=True).revision == "refs/pr/2"
    assert there(inside, revision="refs/pr/2") == here(out)
    assert there(inside) == before


# rights and room -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("route", ["put", "put_part", "complete"])
@pytest.mark.parametrize("status", [403, 400])
def test_an_address_to_send_to_that_has_expired_is_asked_for_anew(
    status: int, route: str, inside: HubServer, out: Path
) -> None:
    inside.part_size = None if route == "put" else 100_000
    ordered = inside.faults.add(route, "status", status=status, times=2)
    push(str(out), REPO, num_proc=1, quiet=True)
    assert ordered.hits == 2
    assert there(inside) == here(out)


def test_an_address_that_is_refused_every_time_is_given_up(inside: HubServer, out: Path) -> None:
    ordered = inside.faults.add("put", "status", status=403, times=100)
    with pytest.raises(HubError, match=r"\(3 tries in \d+ s\)\. .*Run the same command again") as caught:
        push(str(out), REPO, num_proc=1, quiet=True)
    assert ordered.hits == 3
    assert "signature=" not in str(caught.value)


@pytest.mark.parametrize(
    ("route", "status", "said", "advice"),
    [
        ("lfs_batch", 403, "Private repository storage limit reached, please upgrade your plan", "no room for it"),
        ("preupload", 402, "Payment required", "no room for it"),
        ("lfs_batch", 413, "Payload Too Large", "smaller --max-shard-size"),
        ("preupload", 403, "Forbidden", "token with write access"),
        ("commit", 400, "Something is not as it should be", "Correct what it names"),
    ],
)
def test_a_plain_no_comes_with_the_way_out(
    route: str, status: int, said: str, advice: str, inside: HubServer, out: Path
) -> None:
    ordered = inside.faults.add(route, "status", status=status, headers={"X-Error-Message": said}, times=100)
    with pytest.raises(HubError, match=f"HTTP {status}, .*{advice}"):
        push(str(out), REPO, num_proc=1, quiet=True)
    assert ordered.hits == 1


@pytest.mark.parametrize("pattern", ["*.parquet", "meta/manifest.json", "README.md"])
def test_a_file_that_the_repository_ignores_is_named(pattern: str, inside: HubServer, out: Path) -> None:
    repo = inside.store.create(REPO)
    files = repo.commit("main").files | {".gitignore": inside.store.put_blob(f"{pattern}\n".encode())}
    inside.store.add_commit(repo, "refs/heads/main", repo.refs["refs/heads/main"], files, "theirs")
    with pytest.raises(HubError, match=r"the repository's \.gitignore excludes this file\. Remove that line"):
        push(str(out), REPO, num_proc=1, quiet=True)
    assert len(inside.store.commits(REPO)) == 2, "nothing was committed"


def test_a_token_that_may_only_read_ends_it_at_the_first_file(
    inside: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside.store.create(REPO)
    push_here(inside, monkeypatch, READ_TOKEN)
    with pytest.raises(HubError, match=r"you must use a write token.*Use a token with write access"):
        push(str(out), REPO, num_proc=1, quiet=True)
    assert len(inside.requests("preupload")) == 1
    assert inside.requests(*UPLOADS) == []


@pytest.mark.parametrize("quiet", [False, True])
def test_what_the_client_logs_shows_no_signed_address(
    quiet: bool, inside: HubServer, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inside.faults.add("put", "fail_before")
    push(str(out), REPO, num_proc=1, quiet=quiet)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("huggingface_hub")]
    assert any("/lfs/" in line for line in lines) is not quiet
    assert not any("signature=" in line for line in lines)


def test_a_conversion_that_may_not_write_there_goes_on_once_it_may(
    inside: HubServer, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside.store.create(REPO)
    out = tmp_path / "out"
    options = {"push_to": REPO, "delete_pushed": True, "num_proc": 1, "quiet": True}
    push_here(inside, monkeypatch, READ_TOKEN)
    with pytest.raises(HubError, match=r"you must use a write token.*Use a token with write access"):
        convert_and_push(str(made.parent / "source"), str(out), **options)
    assert there(inside) == {}
    push_here(inside, monkeypatch)
    _, pushed = convert_and_push(str(made.parent / "source"), str(out), **options)
    assert pushed is not None
    assert pushed.ok
    assert not list((out / "data").iterdir())


def test_a_repository_that_is_renamed_between_two_runs_still_has_the_shards_that_were_removed_here(
    inside: HubServer, made: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = {"push_to": REPO, "delete_pushed": True, "num_proc": 1, "quiet": True}
    convert_and_push(str(made.parent / "source"), str(out), **options)
    inside.store.rename(inside.store.repo(REPO), "user/renamed")
    summary, pushed = convert_and_push(str(made.parent / "source"), str(out), **options)
    assert summary.did == 0
    assert pushed is not None
    assert (pushed.ok, pushed.changed) == (True, 0)
    with pytest.raises(OutputError, match="is missing"):
        push(str(out), "user/renamed", quiet=True)


def test_on_a_branch_shards_are_removed_and_found_again_by_that_branch_alone(
    inside: HubServer, made: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    source = str(made.parent / "source")
    options = {"push_to": REPO, "delete_pushed": True, "num_proc": 1, "quiet": True}
    convert_and_push(source, str(out), revision="v2", **options)
    assert there(inside) == {}
    assert push(str(out), REPO, revision="v2", verify_only=True, quiet=True).ok
    assert convert_and_push(source, str(out), revision="v2", **options)[0].did == 0
    assert convert_and_push(source, str(out), **options)[0].did == 1, "main has not got it"
    assert there(inside).keys() == there(inside, revision="v2").keys()


@pytest.mark.slow
def test_the_card_has_statistics_and_pictures_only_where_all_may_see_them(inside: HubServer, tmp_path: Path) -> None:
    demo(str(tmp_path / "demo"))
    out = str(tmp_path / "demo" / "out")
    for public in (False, True, False):
        pushed = push(out, REPO, public=public, quiet=True)
        assert pushed.ok
        card = there(inside)["README.md"].decode()
        assert "| Width, px | 96 |" in card
        assert "“Red rings on” 13.1%" in card
        assert ("![Rows, evenly spaced](meta/collage.jpg)" in card) == public
        assert push(out, REPO, verify_only=True, quiet=True).ok
        assert verify(out, num_proc=1, quiet=True).problems == ()
        assert ("meta/collage.jpg" in there(inside)) == public, "a push without --public removes the card's picture"
