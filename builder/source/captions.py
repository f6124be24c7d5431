"""From an annotation's bytes to its caption and text."""

from __future__ import annotations

import codecs
import json
import re
from typing import Any, NamedTuple

from builder.base.names import is_utf8
from builder.base.options import MAX_ANNOTATION_BYTES
from builder.base.records import Reason, SampleProblem

AUTO_KEYS = ("re_caption", "caption")
"""Keys in order of preference. img2dataset writes the original alt text as ``caption``, so the first wins."""

DIGESTS = ("sha256", "md5", "sha1", "sha512")
EVIDENCE = (*DIGESTS, "url")
"""Fields in which a recaption and its image's sidecar can contradict each other."""

_SPEAKERS = ("gpt", "assistant")

MOST_VALUES = 100_000
"""Most JSON values in one annotation. Real ones have tens; two bytes of JSON can become 80 in memory."""

_BOMS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


DEEPEST = 500
"""Most levels of nesting. ``json`` has its own limit, but that differs between Python versions (990 to 10,000) and with
the caller's depth. With it, one annotation would be a row here and a reject there."""

_MARKS = re.compile(rb'"[^"]*"?|[][{},]')
_scan_once = json.JSONDecoder().scan_once  # type: ignore[attr-defined] # the name in json.decoder
_OPENING, _CLOSING = (b"[", b"{"), (b"]", b"}")


class Annotation(NamedTuple):
    """``caption``: as in the row. ``document``: the whole text in UTF-8, unchanged except for a BOM. ``bom``: whether
    it had one."""

    caption: str
    document: bytes
    bom: bool


def read_annotation(document: bytes, caption_key: str = "auto") -> Annotation:
    """Parse one annotation. Raises SampleProblem(CAPTION_INVALID) with what is wrong.

    UTF-8 only (RFC 8259 section 8.1), with or without a BOM. Also reads what ``json`` accepts beyond the RFC: NaN, and
    duplicate keys, of which the last wins. A lone surrogate in the caption (``"\\ud83d"``, half an emoji) has no UTF-8
    form: it becomes U+FFFD in ``caption``, while ``document`` keeps the escape unchanged.
    """
    if len(document) > MAX_ANNOTATION_BYTES:
        raise _invalid(f"{len(document):,} bytes are more than the {MAX_ANNOTATION_BYTES:,} read of one annotation")
    bom = document.startswith(codecs.BOM_UTF8)
    if bom:
        document = document[len(codecs.BOM_UTF8) :]
    try:
        text = document.decode()
    except UnicodeDecodeError as error:
        encoding = next((name for mark, name in _BOMS if document.startswith(mark)), None)
        raise _invalid(f"{encoding}, not UTF-8" if encoding else f"not UTF-8 at byte {error.start}") from None
    if problem := excess(document):
        raise _invalid(problem)
    try:
        value = _parsed(text)
    except ValueError as error:
        raise _invalid(f"not JSON: {_brief(str(error))}") from None
    caption = _caption_of(value, caption_key)
    if not caption.isascii():
        try:
            caption.encode()
        except UnicodeEncodeError:
            caption = caption.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return Annotation(caption, document, bom)


def merge_recaption(sidecar: bytes | None, recaption: str) -> bytes:
    """Merge an img2dataset sidecar and a recaption row (a JSON object with ``re_caption``) into one document.

    The sidecar's fields stay, including the alt text under ``caption``. The recaption's fields replace equal ones.
    Raises SampleProblem(CAPTION_INVALID) if the sidecar is no JSON object.
    """
    if sidecar is None:
        return recaption.encode()
    try:
        text = sidecar.decode("utf-8-sig")
        if problem := excess(sidecar):
            raise _invalid(f"the sidecar is {problem}")
        fields = json.loads(text)
    except ValueError as error:
        raise _invalid(f"the sidecar is not JSON: {_brief(str(error))}") from None
    if not isinstance(fields, dict):
        raise _invalid(f"the sidecar is {json_kind(fields)}, not a JSON object")
    row = json.loads(recaption)
    if words := contradiction(fields, row):
        raise _invalid(words)
    return json.dumps(fields | row, ensure_ascii=False).encode("utf-8", "backslashreplace")


def contradiction(sidecar: dict[str, Any], recaption: dict[str, Any]) -> str:
    """The digest or URL in which a recaption differs from its image's sidecar, with both values. Then the caption
    belongs to another image. "" if they agree, or do not both have one."""
    theirs = {name.lower(): value for name, value in recaption.items()}
    for name, value in sidecar.items():
        field = name.lower()
        ours, other = joined_value(field, value), joined_value(field, theirs.get(field))
        if field in EVIDENCE and ours and other and ours != other:
            return f"another image's recaption: its {field} is {_brief(other)}, the image's is {_brief(ours)}"
    return ""


def joined_value(field: str, value: object) -> str:
    """A field's value for joining: text unchanged, digests in lower case, whole numbers as digits; "" for nothing."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = value.strip() if isinstance(value, str) and is_utf8(value) else ""
    return text.lower() if field.lower() in DIGESTS else text


def text_document(text: bytes, caption_key: str) -> bytes:
    """The annotation made from a .txt beside an image: an object with the text as its caption. Raises
    SampleProblem(CAPTION_INVALID) if it is not UTF-8."""
    try:
        caption = text.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise _invalid(f"not UTF-8 at byte {error.start}") from None
    return json.dumps({"caption" if caption_key == "auto" else caption_key: caption}, ensure_ascii=False).encode()


def has_caption(fields: dict[str, Any], caption_key: str) -> bool:
    """Whether these fields hold a caption, good or bad."""
    keys = (*AUTO_KEYS, "conversations") if caption_key == "auto" else (caption_key,)
    return any(key in fields for key in keys)


def excess(document: bytes) -> str:
    """Why UTF-8 JSON is too large to parse, in words; "" if it is not. A long document costs three searches.

    Escaped quotes are removed first. A pattern that handled them would take quadratic time on a string that never
    ends.
    """
    if len(document) <= DEEPEST:
        return ""  # each bracket and comma takes a byte
    brackets = document.count(b"{") + document.count(b"[")
    if brackets <= DEEPEST and brackets + document.count(b",") <= MOST_VALUES:
        return ""
    depth = values = 0
    for match in _MARKS.finditer(document.replace(rb"\\", b"").replace(rb"\"", b"")):
        mark = match[0]
        if mark in _OPENING:
            depth += 1
            values += 1
        elif mark == b",":
            values += 1
        elif mark in _CLOSING:
            depth -= 1
        if depth > DEEPEST:
            return f"nested more than {DEEPEST} deep"
        if values > MOST_VALUES:
            return f"made of more than {MOST_VALUES:,} values"
    return ""


def _parsed(text: str) -> Any:
    """``json.loads`` of a string. A third of its time goes into other things than parsing; this saves that."""
    try:
        value, end = _scan_once(text, 0)
    except StopIteration:
        end = -1
    return value if end == len(text) else json.loads(text)  # white space around the value, or an error to report


def _caption_of(value: Any, caption_key: str) -> str:
    if not isinstance(value, dict):
        raise _invalid(f"{json_kind(value)}, not a JSON object")
    keys = AUTO_KEYS if caption_key == "auto" else (caption_key,)
    for key in keys:
        if key in value:
            break
    else:
        spoken = _spoken(value.get("conversations")) if caption_key == "auto" else None
        if spoken is None:
            names = ", ".join(sorted(map(str, value))[:8]) or "none"
            raise _invalid(f"no field {' or '.join(keys)}; fields: {_brief(names)}")
        key, value = "conversations", {"conversations": spoken}
    caption = value[key]
    if not isinstance(caption, str):
        raise _invalid(f"{key} is {json_kind(caption)}, not a string")
    if not caption.strip():
        raise _invalid(f"{key} is blank")
    return caption


def _spoken(conversations: Any) -> Any:
    """The first answer in LLaVA-style conversations; None if there is none."""
    for turn in conversations if isinstance(conversations, list) else []:
        if isinstance(turn, dict) and turn.get("from", turn.get("role")) in _SPEAKERS:
            return turn.get("value", turn.get("content"))
    return None


def _invalid(detail: str) -> SampleProblem:
    return SampleProblem(Reason.CAPTION_INVALID, detail.encode("utf-8", "backslashreplace").decode())


def json_kind(value: Any) -> str:
    """The type of a value from JSON, in words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _brief(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."
