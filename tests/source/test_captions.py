"""An annotation is a caption and its document, or a reject that says what is wrong with it."""

from __future__ import annotations

import codecs
import json
import re
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.base.options import MAX_ANNOTATION_BYTES
from builder.base.records import Reason, SampleProblem
from builder.source.captions import merge_recaption, read_annotation


def refused(document: bytes, caption_key: str = "auto") -> str:
    with pytest.raises(SampleProblem) as caught:
        read_annotation(document, caption_key)
    assert caught.value.reason is Reason.CAPTION_INVALID
    caught.value.detail.encode()  # goes into a table
    return caught.value.detail


@pytest.mark.parametrize(
    ("document", "key", "caption"),
    [
        (b'{"caption": "a cat"}', "auto", "a cat"),
        (b'{"re_caption": "a cat"}', "auto", "a cat"),
        (b'{"caption": "alt", "re_caption": "a cat"}', "auto", "a cat"),  # caption is img2dataset's alt text
        (b'{"re_caption": "a cat", "caption": "alt"}', "caption", "alt"),
        (b'{"text": "a cat", "caption": "alt"}', "text", "a cat"),
        (b'{"auto": "a cat", "caption": "alt"}', "auto", "alt"),  # auto is a rule, never a field
        (b'{"caption": "1", "caption": "2"}', "auto", "2"),  # a key twice: the last, as every reader has it
        (b' \n{"caption": " a cat \\n"}\r\n', "auto", " a cat \n"),  # nothing is stripped
        (b'{"caption": "nul \\u0000 inside"}', "auto", "nul \0 inside"),
        ('{"caption": "图 naïve 🎨"}'.encode(), "auto", "图 naïve 🎨"),
        (b'{"caption": "\\ud83c\\udfa8"}', "auto", "🎨"),  # a pair of escapes is one character
        (b'{"caption": "a", "n": NaN, "i": -Infinity}', "auto", "a"),  # what json.dumps writes beyond the RFC
        (b'{"caption": "a", "deep": ' + b"[" * 400 + b"]" * 400 + b"}", "auto", "a"),
        (b'{"caption": "\\ufeff"}', "auto", "\ufeff"),  # odd, but no blank
    ],
)
def test_the_caption_is_found(document: bytes, key: str, caption: str) -> None:
    found = read_annotation(document, key)
    assert found.caption == caption
    assert found.document == document  # to the byte, whatever is in it
    assert not found.bom


def test_a_byte_order_mark_is_taken_off_and_noted() -> None:
    found = read_annotation(codecs.BOM_UTF8 + b'{"caption": "a"}')
    assert found == ("a", b'{"caption": "a"}', True)
    twice = refused(codecs.BOM_UTF8 * 2 + b'{"caption": "a"}')
    assert "not JSON" in twice


def test_ten_megabytes_are_a_caption() -> None:
    caption = "word " * 2_000_000
    document = json.dumps({"caption": caption}).encode()
    assert read_annotation(document) == (caption, document, False)


def test_the_bound_on_a_document_is_inclusive() -> None:
    frame = b'{"caption": "a", "x": ""}'
    fits = frame[:-2] + b" " * (MAX_ANNOTATION_BYTES - len(frame)) + frame[-2:]
    assert len(fits) == MAX_ANNOTATION_BYTES
    assert read_annotation(fits).caption == "a"
    assert "33,554,433 bytes are more" in refused(fits + b" ")


@pytest.mark.parametrize(
    ("document", "detail"),
    [
        (b"", "not JSON"),
        (b" \n", "not JSON"),
        (codecs.BOM_UTF8, "not JSON"),
        (b"{", "not JSON"),
        (b'{"caption": "a"', "not JSON"),
        (b'{"caption": "a"} x', "not JSON: Extra data"),
        (b"{'caption': 'a'}", "not JSON"),
        (b'{"caption": "tab\there"}', "not JSON: Invalid control character"),
        (b"<html>", "not JSON"),
        (b"\0\0\0\0", "not JSON"),
        (b"null", "null, not a JSON object"),
        (b"17", "a number, not a JSON object"),
        (b"1.5", "a number, not a JSON object"),
        (b"NaN", "a number, not a JSON object"),
        (b"true", "a boolean, not a JSON object"),
        (b'"a cat"', "a string, not a JSON object"),
        (b'[{"caption": "a"}]', "a list, not a JSON object"),
        (b"{}", "no field re_caption or caption; fields: none"),
        (b'{"Caption": "a", "text": "b"}', "no field re_caption or caption; fields: Caption, text"),
        (b'{"caption": null}', "caption is null, not a string"),
        (b'{"caption": 7}', "caption is a number, not a string"),
        (b'{"caption": false}', "caption is a boolean, not a string"),
        (b'{"caption": ["a"]}', "caption is a list, not a string"),
        (b'{"caption": {"en": "a"}}', "caption is an object, not a string"),
        (b'{"caption": ""}', "caption is blank"),
        (b'{"caption": " \\t\\n\\u00a0\\u3000"}', "caption is blank"),
        (b'{"re_caption": null, "caption": "alt"}', "re_caption is null"),  # the alt text is no stand-in
        (b'{"caption": "\xe9"}', "not UTF-8 at byte 13"),  # Latin-1
        (b'{"caption": "\xed\xa0\xbd"}', "not UTF-8 at byte 13"),  # a surrogate in three bytes
        ('{"caption": "a"}'.encode("utf-16"), "UTF-16, not UTF-8"),
        ('{"caption": "a"}'.encode("utf-16-be"), "not JSON"),  # without a mark it is UTF-8 full of NULs
        (codecs.BOM_UTF16_BE + '{"caption": "a"}'.encode("utf-16-be"), "UTF-16, not UTF-8"),
        ('{"caption": "a"}'.encode("utf-32"), "UTF-32, not UTF-8"),  # whose mark begins like UTF-16's
        (b"[" * 200_000, "nested more than 500 deep"),
        (b'{"caption": "a", "deep": ' + b'{"a":' * 200_000, "nested more than 500 deep"),
        (b'{"caption": "a", "n": ' + b"9" * 10_000 + b"}", "not JSON"),  # more digits than Python reads
    ],
)
def test_what_gives_no_caption_is_refused_with_the_reason(document: bytes, detail: str) -> None:
    assert detail in refused(document)


def test_a_field_asked_for_by_name_is_the_only_one_taken() -> None:
    assert refused(b'{"caption": "a", "re_caption": "b"}', "text") == "no field text; fields: caption, re_caption"


def test_details_are_short_whatever_the_document() -> None:
    fields = json.dumps({f"{'k' * 200}{i}": i for i in range(50)}).encode()
    assert len(refused(fields)) < 200
    assert len(refused(b'{"' + b"k" * 100_000)) < 200
    assert "\\ud83d" in refused(b'{"half \\ud83d": 1}')


@given(st.text(st.characters(exclude_characters=""), min_size=1, max_size=30))
def test_half_an_emoji_becomes_one_replacement_character(caption: str) -> None:
    document = json.dumps({"caption": f"x{caption}"}).encode()
    found = read_annotation(document)
    together = json.loads(document)["caption"]  # json joins two halves that stand side by side
    assert found.caption == re.sub("[\ud800-\udfff]", "\ufffd", together)
    found.caption.encode()
    assert found.document == document


@given(st.binary(max_size=60))
def test_bytes_of_any_kind_are_read_or_refused(document: bytes) -> None:
    for text in (document, b'{"caption": "' + document + b'"}', b'{"caption": ' + document + b"}"):
        with suppress(SampleProblem):  # and no other exception
            found = read_annotation(text)
            assert found.caption.strip()
            assert found.document == text.removeprefix(codecs.BOM_UTF8)


# --- a sidecar and a recaption ---


def test_the_recaption_goes_over_the_sidecar() -> None:
    sidecar = codecs.BOM_UTF8 + b'{"url": "u", "caption": "alt", "n": NaN, "re_caption": "old"}'
    document = merge_recaption(sidecar, '{"url": "u", "re_caption": "图"}')
    assert document == '{"url": "u", "caption": "alt", "n": NaN, "re_caption": "图"}'.encode()
    assert read_annotation(document).caption == "图"


def test_without_a_sidecar_the_recaption_is_the_document() -> None:
    assert merge_recaption(None, '{"key": "1",  "re_caption": "a"}') == b'{"key": "1",  "re_caption": "a"}'


def test_half_an_emoji_in_a_sidecar_stays_an_escape() -> None:
    document = merge_recaption(b'{"TEXT": "half \\ud83d"}', '{"re_caption": "a"}')
    assert json.loads(document) == {"TEXT": "half \ud83d", "re_caption": "a"}


@pytest.mark.parametrize(
    ("sidecar", "detail"),
    [
        (b"", "the sidecar is not JSON"),
        (b"{", "the sidecar is not JSON"),
        (b"\xff", "the sidecar is not JSON"),
        (b"[1]", "the sidecar is a list, not a JSON object"),
        (b"null", "the sidecar is null"),
        (b"[" * 200_000, "the sidecar is nested more than 500 deep"),
    ],
)
def test_a_bad_sidecar_is_refused(sidecar: bytes, detail: str) -> None:
    with pytest.raises(SampleProblem) as caught:
        merge_recaption(sidecar, '{"re_caption": "a"}')
    assert caught.value.reason is Reason.CAPTION_INVALID
    assert detail in caught.value.detail


@pytest.mark.parametrize("depth", [10, 300, 900, 960, 980, 990, 995, 1000, 3000, 30_000])
def test_a_sidecar_is_merged_or_refused_however_deep_it_is(depth: int) -> None:
    """Reading and writing JSON run out of stack at different depths."""
    with suppress(SampleProblem):
        document = merge_recaption(b'{"deep": ' + b"[" * depth + b"]" * depth + b"}", '{"re_caption": "a"}')
        assert document.count(b"[") == depth


fields = st.dictionaries(
    st.text(max_size=6), st.none() | st.integers() | st.text(max_size=6) | st.floats(allow_nan=False)
)


@given(fields, fields)
def test_no_field_of_either_is_lost(sidecar: dict[str, Any], recaption: dict[str, Any]) -> None:
    merged = json.loads(merge_recaption(json.dumps(sidecar).encode(), json.dumps(recaption)))
    assert merged == sidecar | recaption


def test_nesting_is_bounded_the_same_on_every_python_and_brackets_in_strings_do_not_nest() -> None:
    def nested(levels: int) -> bytes:
        return b'{"caption": "x", "deep": ' + b"[" * levels + b"]" * levels + b"}"

    assert read_annotation(nested(499)).caption == "x"
    with pytest.raises(SampleProblem) as caught:
        read_annotation(nested(500))
    assert caught.value.detail == "nested more than 500 deep"
    flat = '{"caption": "a [\\" { b", "many": [' + ",".join(['"[{"'] * 2000) + "]}"
    assert read_annotation(flat.encode()).caption == 'a [" { b'
