"""Every error crosses a process boundary with its facts, and says them in its message."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from builder.base import errors
from builder.base.errors import (
    AccessError,
    ChangedFileError,
    ClusterError,
    DamagedFileError,
    HubError,
    IndexMismatchError,
    InterruptedRunError,
    JobMismatchError,
    Laion6mError,
    LayoutError,
    ListingError,
    LockedError,
    MissingExtraError,
    OptionError,
    OutputError,
    RemovedShardError,
    SourceChangedError,
    SourceError,
    WorkerDiedError,
    WriteError,
)

TABLE: dict[type[Laion6mError], tuple[tuple[object, ...], list[str]]] = {
    # facts, and what the message has to hold: every fact, and the next step where there is one
    Laion6mError: (("it broke", "here"), ["it broke", "here"]),
    SourceError: (("S is not there",), ["S is not there"]),
    LayoutError: (("SRC", "notes.txt", "Expected raw/*.tar."), ["SRC", "notes.txt", "Expected raw/*.tar."]),
    ListingError: (("data.json", "byte 17", "not UTF-8"), ["data.json", "byte 17", "not UTF-8"]),
    SourceChangedError: (("raw/0.tar", "12 bytes"), ["raw/0.tar", "12 bytes", "new OUT"]),
    OptionError: (("min_side", -3, "1 or more"), ["min_side", "-3", "1 or more"]),
    OutputError: (("OUT is a file",), ["OUT is a file"]),
    JobMismatchError: (("OUT", ["a was 1, is 2", "b is new"]), ["OUT", "a was 1, is 2", "b is new", "another OUT"]),
    LockedError: (("OUT", "process 7 on here"), ["OUT", "process 7 on here", "Wait"]),
    WriteError: (("OUT/x", "No space left"), ["OUT/x", "No space left", "same command"]),
    AccessError: (("OUT/my data", "Permission denied"), ["'OUT/my data'", "Permission denied", "owner"]),
    IndexMismatchError: (("data/a.parquet", "9 bytes, not 8"), ["data/a.parquet", "9 bytes, not 8", "source="]),
    ChangedFileError: (("data/a.parquet", "9 bytes, not 8"), ["data/a.parquet", "9 bytes, not 8", "Open the dataset"]),
    RemovedShardError: (
        ("data/a.parquet", "hf://datasets/a/b"),
        ["data/a.parquet", "open_dataset('hf://datasets/a/b')"],
    ),
    DamagedFileError: (("x.parquet", "footer", "no magic"), ["x.parquet", "footer", "no magic"]),
    WorkerDiedError: (("shard 3", "signal 9"), ["shard 3", "signal 9", "--num-proc"]),
    ClusterError: (("host:6379", "no answer", "Start it."), ["host:6379", "no answer", "Start it."]),
    MissingExtraError: (("reading zstd", "zstandard", "zstd"), ["reading zstd", "zstandard", "'laion6m[zstd]'"]),
    InterruptedRunError: ((3, 16), ["3 of 16", "same command again"]),
    HubError: (("pushing to a/b", "403", "Log in."), ["pushing to a/b", "403", "Log in."]),
}


def every_error(root: type[Laion6mError] = Laion6mError) -> Iterator[type[Laion6mError]]:
    yield root
    for child in root.__subclasses__():
        yield from every_error(child)


def test_the_table_below_holds_every_error_of_the_module() -> None:
    assert {kind for kind in every_error() if kind.__module__ == errors.__name__} == set(TABLE)


def test_every_error_stands_in_the_tree_at_the_top_of_the_module() -> None:
    assert not [kind.__name__ for kind in TABLE if kind.__name__ not in (errors.__doc__ or "")]


@pytest.mark.parametrize("kind", TABLE, ids=lambda kind: kind.__name__)
def test_an_error_comes_out_of_a_pickle_as_it_went_in(kind: type[Laion6mError]) -> None:
    facts, _ = TABLE[kind]
    error = kind(*facts)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        copy = pickle.loads(pickle.dumps(error, protocol))
        assert type(copy) is kind
        assert copy.args == facts
        assert str(copy) == str(error)


@pytest.mark.parametrize("kind", TABLE, ids=lambda kind: kind.__name__)
def test_the_message_holds_every_fact_and_the_way_on(kind: type[Laion6mError]) -> None:
    facts, promised = TABLE[kind]
    message = str(kind(*facts))
    assert [part for part in promised if part not in message] == []


@pytest.mark.parametrize("kind", TABLE, ids=lambda kind: kind.__name__)
def test_an_error_made_of_a_message_alone_says_that_message(kind: type[Laion6mError]) -> None:
    """As torch's loader makes them of what a worker raised."""
    assert str(kind("Caught it in a worker.")) == "Caught it in a worker."


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [(OptionError, ValueError), (MissingExtraError, ImportError)],  # what callers who do not know us would catch
)
def test_two_errors_are_also_what_python_calls_them(kind: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(kind, builtin)


def test_empty_facts_leave_no_trace_in_a_plain_message() -> None:
    assert str(SourceError("one", "", None, "two")) == "one; two"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("5xx", 'size "5xx": give a size'),
        ("", 'size "": give a size'),
        (-3, "size -3: give a size"),
        (0.5, "size 0.5: give a size"),
        (["a", 2], 'size ["a", 2]: give a size'),
        (None, "size: give a size"),  # a value that says nothing, or a secret
        (True, "size: give a size"),
    ],
)
def test_an_options_value_is_shown_as_it_was_given_not_in_pythons_words(value: object, shown: str) -> None:
    assert str(OptionError("size", value, "give a size")) == shown


@pytest.mark.parametrize(
    "error",
    [
        ListingError("my data/data.json", "byte 17", "not UTF-8"),
        SourceChangedError("my data/0.tar", "12 bytes"),
        JobMismatchError("my data", ["a was 1, is 2"]),
        LockedError("my data", "process 7 on here"),
        WriteError("my data", "No space left"),
        AccessError("my data", "Permission denied"),
        IndexMismatchError("my data/a.parquet", "9 bytes, not 8"),
        ChangedFileError("my data/a.parquet", "9 bytes, not 8"),
        RemovedShardError("my data/a.parquet", "hf://datasets/a/b"),
        DamagedFileError("my data/x.parquet", "footer", "no magic"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_path_is_quoted_for_a_shell(error: Laion6mError) -> None:
    assert f"'{error.args[0]}'" in str(error)
