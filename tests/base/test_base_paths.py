from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from builder.base.errors import SourceError
from builder.base.paths import path_of, paths_of, require_folder


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("data/laion6m", "data/laion6m"),
        (Path("data/laion6m"), "data/laion6m"),
        ("~/laion6m", "HOME/laion6m"),
        (Path("~/laion6m"), "HOME/laion6m"),
        ("~", "HOME"),
        ("./~", "./~"),  # a folder that is called so
        ("a~b/~c", "a~b/~c"),
        ("s3://bucket/~me/x", "s3://bucket/~me/x"),
        (Path("s3://bucket/x"), "s3://bucket/x"),  # pathlib makes one slash of two
        (Path("hf://datasets/user/name"), "hf://datasets/user/name"),
        ("./s3:/bucket", "./s3:/bucket"),  # a folder; without the dot it is a typing error (test_storage.py)
        (Path("/data/c:/x"), "/data/c:/x"),
        ("", ""),
    ],
)
def test_a_path_is_text_or_pathlike_and_a_tilde_is_home(
    given: str | Path, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert path_of(given) == meant.replace("HOME", "/home/someone")


@pytest.mark.parametrize("given", [None, 3, b"data"])
def test_what_is_no_path_is_a_type_error(given: Any) -> None:
    with pytest.raises(TypeError, match="str"):
        path_of(given)


@pytest.mark.parametrize("given", ["a.parquet", Path("a.parquet"), ["a.parquet"], (Path("a.parquet"),)])
def test_one_path_alone_is_not_taken_letter_by_letter(given: Any) -> None:
    assert paths_of(given) == ("a.parquet",)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere", "nowhere is not there$"),
        ("user/name", "hf://datasets/user/name$"),
        ("data/name", "data/name is not there$"),  # data/ is a folder here: a slip of the pen
        ("./user/name", "./user/name is not there$"),
        ("a/b/c", "a/b/c is not there$"),
        ("file", "file is not a folder$"),
        ("link", "link is not a folder$"),  # to nothing
    ],
)
def test_a_missing_folder_is_named_and_a_repository_s_name_is_recognised(
    path: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkdir("data")
    Path("file").touch()
    Path("link").symlink_to("gone")
    with pytest.raises(SourceError, match=words):
        require_folder(path)
    require_folder("data")
