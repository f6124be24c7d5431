"""Verify README.md. The tool makes one part of it. The owner may write the rest.

Three states are sound: the file as the manifest has it; the file as a push left it (a push brings the Hub's card here);
a file that its owner edited, if the tool's part is unchanged.
"""

from __future__ import annotations

import os
from dataclasses import asdict

import xxhash

from builder.base import schema
from builder.base.errors import OutputError, refuse_denied
from builder.base.words import printable
from builder.store.card import restore_card
from builder.store.card_merge import generated_part, take_apart
from builder.store.manifest import Manifest
from builder.store.pushed import PushRecords
from builder.verification.findings import Finding

_MAKE_CARD = "Run the same laion6m convert again. It makes this part again and keeps your text."
_MEND_CARD = "Correct the YAML. Or remove the file and run the same laion6m convert again."


def check_card(out: str, manifest: Manifest, problems: list[Finding]) -> list[str]:
    """Notes on the card. Adds to ``problems``. Raises AccessError if this user may not read it."""
    try:
        with open(os.path.join(out, schema.CARD), "rb") as handle:
            card = handle.read()
    except OSError as error:
        refuse_denied(os.path.join(out, schema.CARD), error)
        problems.append(Finding(schema.CARD, f"cannot be read: {error.strerror}"))
        return []
    mine = xxhash.xxh3_128_hexdigest(manifest.to_json())
    pushed = [each for each in PushRecords(out).cards(schema.CARD).values() if each.manifest == mine]
    digest = xxhash.xxh3_128_hexdigest(card)
    noted = manifest.files[schema.CARD]["xxh3_128"]
    if digest == noted or any(digest == each.digest for each in pushed):
        return []
    try:
        parts = take_apart(card, schema.CARD)
    except OutputError as error:
        problem = str(error).partition(": ")[2].removesuffix(". Mend it, or remove the file")
        problems.append(Finding(schema.CARD, printable(f"its YAML cannot be read: {problem}"), _MEND_CARD))
        return []
    made = xxhash.xxh3_128_hexdigest(generated_part(card))
    restored = restore_card(parts, manifest.totals, manifest.options, manifest.versions)
    intact = restored is not None and xxhash.xxh3_128_hexdigest(restored) == noted
    if not intact and not any(made == each.made for each in pushed):
        problem = (
            "laion6m's part was changed: the text between its comments, or dataset_info, configs or size_categories"
            if parts.inside is not None
            else "laion6m's part is missing: its comments and the text between them"
        )
        problems.append(Finding(schema.CARD, problem, _MAKE_CARD))
        return []
    if any(asdict(parts.own) == each.own for each in pushed):  # the pushed card, without its statistics
        return []
    return [f"{schema.CARD} was edited (or pushed elsewhere) after it was made. laion6m's part is unchanged."]
