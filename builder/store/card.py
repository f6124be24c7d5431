"""README.md: the dataset card, made from the manifest's counts, options and versions.

Text that the owner writes into it stays: see card_merge.py.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import Any

from builder.base import schema
from builder.base.options import MAX_PIXELS
from builder.base.records import Reason
from builder.store.card_merge import (
    CONFIG,
    PLACEHOLDER,
    Card,
    Own,
    column_config,
    column_files,
    compose,
    made_metadata,
    take_apart,
    unnamed,
    with_statistics,
)

_MEANING = {
    Reason.IMAGE_MISSING: "the listed image is in no archive",
    Reason.CAPTION_MISSING: "the listed annotation is in no archive",
    Reason.CAPTION_INVALID: "the annotation is not JSON, not an object, or has no usable caption",
    Reason.IMAGE_UNREADABLE: "the bytes are no image of a known format",
    Reason.IMAGE_TRUNCATED: "the image ends before its end marker",
    Reason.IMAGE_TOO_LARGE: "more pixels (or bytes) than the limit",
    Reason.IMAGE_TOO_SMALL: "the shorter side is under the limit",
    Reason.ASPECT_RATIO: "longer side ÷ shorter side is over the limit",
    Reason.DUPLICATE: "another entry before it names the same image",
    Reason.TAR_DAMAGED: "lost in a damaged archive",
}
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M")


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts on a card.

    ``totals``, ``options``, ``versions``: as in the manifest.
    ``num_bytes``: size of the rows in Arrow, about. ``download_size``: bytes of the files in data/.
    ``features``: in the form of ``datasets.Features.to_dict``. ``images``: whether the rows have image bytes.
    ``columns``: name of each added column → what a row of it holds. Each is a configuration of its own.
    ``chosen``: for a selection, the number of rows of its dataset, then each step of choosing.
    """

    totals: dict[str, Any]
    options: dict[str, Any]
    versions: dict[str, str]
    num_bytes: int
    download_size: int
    features: dict[str, Any]
    images: bool = True
    columns: dict[str, str] = field(default_factory=dict)
    chosen: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        return schema.SUFFIXES[self.options["format"]] if self.images else ".parquet"


def write_card(facts: Facts, existing: bytes | None = None) -> bytes:
    """The card of a converted folder. ``existing``: the card in the folder now. Its owner's text and metadata stay.
    Raises OutputError if its YAML cannot be read."""
    card = take_apart(existing or b"", schema.CARD)
    return make_card(facts, card.own, card.repo)


def features_of(options: dict[str, Any]) -> dict[str, Any]:
    """The features of a folder converted with ``options``. Empty for tars: ``datasets`` makes columns of their members
    itself."""
    return {} if options["format"] == "webdataset" else schema.FEATURES


def make_card(facts: Facts, own: Own, repo: str, statistics: str = "") -> bytes:
    """A card for a repository ("user/name"). ``statistics``: a section in Markdown, or "" for none."""
    return compose(_metadata(facts), with_statistics(_body(facts, repo), statistics), own, repo)


def restore_card(card: Card, totals: dict[str, Any], options: dict[str, Any], versions: dict[str, str]) -> bytes | None:
    """A converted folder's card as it was first made, restored from one that was edited or pushed since. None if its
    made metadata do not fit ``totals`` and ``options``.

    The made text is taken unchanged, whatever version made it. So compare the result with the checksum of the card that
    was made.
    """
    try:
        info = made_metadata(card.values)["dataset_info"]
        sizes = int(info["splits"][0]["num_bytes"]), int(info["download_size"])
        there = info.get("features", ())
        features = {each["name"]: schema.FEATURES[each["name"]] for each in there}  # in the order of the card
        metadata = _metadata(Facts(totals, options, versions, *sizes, features))
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return compose(metadata, unnamed(card), Own(), PLACEHOLDER) if made_metadata(card.values) == metadata else None


def make_interim_card(own: Own, repo: str, suffix: str) -> bytes:
    """A card for the time in which shards are still being uploaded. It states no counts, as they are not final."""
    body = "An upload of this dataset is under way: not all of its shards are here yet, and no counts are given until they are."
    return compose({"configs": [_config(CONFIG, _shards(suffix))]}, body, own, repo)


def _metadata(facts: Facts) -> dict[str, Any]:
    rows = facts.totals["rows"]
    size = _SIZES[sum(rows >= 10**power for power in range(3, 8))]
    features = [
        {"name": name, "dtype": "image" if spec["_type"] == "Image" else spec["dtype"]}
        for name, spec in facts.features.items()
    ]
    split = {"name": schema.SPLIT, "num_bytes": facts.num_bytes, "num_examples": rows}
    info = {"splits": [split], "download_size": facts.download_size, "dataset_size": facts.num_bytes}
    added = [_config(column_config(name), column_files(name)) for name in sorted(facts.columns)]
    return {
        "size_categories": [size],
        "dataset_info": ({"features": features} if features else {}) | info,
        "configs": [_config(CONFIG, _shards(facts.suffix)), *added],
    }


def _config(name: str, path: str) -> dict[str, Any]:
    return {"config_name": name, "data_files": [{"split": schema.SPLIT, "path": path}]}


def _shards(suffix: str) -> str:
    return f"{schema.DATA}/{schema.SPLIT}-*{suffix}"


def _body(facts: Facts, repo: str) -> str:
    totals = facts.totals
    rejected = totals["rejected"]
    lines = [f"| {reason} | {count:,} | {_MEANING[Reason(reason)]} |" for reason, count in rejected.items() if count]
    table = "\n".join(["| reason | samples | what it means |", "|---|---:|---|", *lines]) if lines else "None."
    return f"""{_head(facts)}
## Where it comes from

Images: [dclure/laion-aesthetics-12m-umap](https://huggingface.co/datasets/dclure/laion-aesthetics-12m-umap), of which about 8 million could be downloaded and 6 million were re-captioned as [wusize/laion6m](https://huggingface.co/datasets/wusize/laion6m), for OpenUni ([arXiv 2505.23661](https://arxiv.org/abs/2505.23661)).

**Licence.** The images belong to their owners; they were found on the web by LAION, and whoever collected them may not pass rights on that they do not have. Keep a copy private unless you know that you may publish it.

## Counts

{totals["listed"]:,} samples were listed; {totals["rows"]:,} are rows here, {sum(rejected.values()):,} are not. {totals["unlisted"]:,} further images in the source are named by no listing. `meta/rejects.parquet` names every sample left out.

{table}

{_loading(facts, repo)}{_columns(facts, repo)}{_chosen(facts)}
## How it was made

{code("laion6m convert SOURCE OUT" + _arguments(facts.options))} with {", ".join(f"{name} {version}" for name, version in facts.versions.items())}: caption from {code(facts.options["policy"]["caption_key"])}, {_limits(facts.options["policy"])}.{_made(facts)}
"""


def _chosen(facts: Facts) -> str:
    if not facts.chosen:
        return ""
    of, *steps = facts.chosen
    listed = "\n".join(f"1. {code(step)}" for step in steps)
    return f"""
## Which rows

A selection of {of} rows; `meta/selection.json` and `meta/rows.arrow` say which. Rows left by each step:

{listed}
"""


def _head(facts: Facts) -> str:
    rows = facts.totals["rows"]
    if not facts.images:
        return f"""# laion6m: re-captions, without the images

{rows:,} captions, each with the complete JSON document it came in and the size of the image it was written for. The images themselves are not here: `key` is the path of each in [wusize/laion6m](https://huggingface.co/datasets/wusize/laion6m), `url` where it was found.

| column | type | what it is |
|---|---|---|
| `key` | string | path of the image without its extension |
| `url` | string | of the image, where the annotation has one |
| `caption` | string | the re-caption |
| `width`, `height` | int32 | pixels of the image as stored; EXIF orientation is not applied |
| `annotation` | string | the annotation's JSON text, complete |
"""
    if facts.suffix == ".tar":
        return f"""# laion6m: images with re-captions, as tars for webdataset

{rows:,} images, each with the complete JSON document that its caption came in.

| member | what it is |
|---|---|
| `KEY.jpg` (or `.png`, `.webp` …) | the image file's bytes, untouched |
| `KEY.json` | the annotation's JSON text, complete; the caption is in it |

`KEY` is the path of the image without its extension. A dot in its last part is written `%2E`.
"""
    return f"""# laion6m: images with re-captions

{rows:,} images, each with the caption that was written for it and the complete JSON document the caption came in.

| column | type | what it is |
|---|---|---|
| `image` | image | the file's bytes, untouched, and its path |
| `key` | string | path of the image without its extension |
| `caption` | string | the re-caption |
| `width`, `height` | int32 | pixels as stored; EXIF orientation is not applied |
| `annotation` | string | the annotation's JSON text, complete |
"""


def _loading(facts: Facts, repo: str) -> str:
    parts = [
        f"""## Loading

```python
from datasets import load_dataset

rows = load_dataset("{repo}", split="{schema.SPLIT}")                       # or a local folder in place of the name
rows = load_dataset("{repo}", split="{schema.SPLIT}", streaming=True)       # without downloading first
```
"""
    ]
    if facts.suffix == ".tar":
        parts.append(f"""
```python
import webdataset

rows = webdataset.WebDataset("{schema.DATA}/{schema.SPLIT}-{{00000..{facts.totals["shards"] - 1:05d}}}-of-{facts.totals["shards"]:05d}.tar").decode("pil")
```
""")
    if facts.suffix == ".parquet":
        parts.append(f"""
```sql
-- DuckDB, without downloading more than the columns asked for
SELECT key, width, height, caption FROM 'hf://datasets/{repo}/data/*.parquet' WHERE width >= 1024 LIMIT 10;
```

```python
import polars

polars.scan_parquet("hf://datasets/{repo}/data/*.parquet").select("key", "caption").head(10).collect()
```
""")
    if facts.images:
        parts.append(f"""
```python
from builder import open_dataset            # pip install laion6m: random access, no cache written

dataset = open_dataset("hf://datasets/{repo}")      # or a local folder
dataset[12].caption, dataset[12].image      # str, bytes
```

```python
from builder.mm import CaptionDataset       # pip install 'laion6m[mm]': OpenUni's training dataset, for mmengine

dataset = CaptionDataset(data_path="FOLDER", image_size=512)
```
""")
    return "".join(parts)


def _columns(facts: Facts, repo: str) -> str:
    if not facts.columns:
        return ""
    name = min(facts.columns)
    rows = "\n".join(f"| `{each}` | {kind} |" for each, kind in sorted(facts.columns.items()))
    return f"""
## Columns

Beside the images lie columns that were added later, one value or array for each row, in the order of the rows. Each is a configuration of its own.

| column | a row holds |
|---|---|
{rows}

```python
load_dataset("{repo}", "{column_config(name)}", split="{schema.SPLIT}")     # key and {name}

open_dataset("hf://datasets/{repo}")[12]["{name}"]                          # with the image and its caption
```
"""


def _limits(policy: dict[str, Any]) -> str:
    ratio, side = policy["max_aspect_ratio"], policy["min_side"]
    return ", ".join(
        [
            f"aspect ratio up to {ratio:g}" if ratio else "any aspect ratio",
            *([f"shorter side of {side:,} pixels or more"] if side else []),
            f"{policy['max_pixels']:,} pixels at most",
        ]
    )


def _made(facts: Facts) -> str:
    if not facts.images:
        return " The columns without image bytes were then copied with `laion6m push --captions-only`."
    return (
        " `meta/manifest.json` has every option, a checksum for every file, and the totals; `meta/index.arrow` says where "
        "each row's bytes lie."
    )


def _arguments(options: dict[str, Any]) -> str:
    """The options that differ from their defaults, as a user would type them."""
    policy = options["policy"]
    given = [
        ("--format", options["format"], "parquet"),
        ("--caption-key", policy["caption_key"], "auto"),
        ("--max-aspect-ratio", policy["max_aspect_ratio"], 3.0),
        ("--min-side", policy["min_side"], None),
        ("--max-pixels", policy["max_pixels"], MAX_PIXELS),
        ("--max-shard-size", options["max_shard_size"], 500_000_000),
    ]
    words = "".join(f" {name} {shlex.quote(str(value))}" for name, value, default in given if value != default)
    if options.get("on"):
        words += f" --on {shlex.quote(options['on'])}"
    if options.get("listing") is False:
        words += " --no-listing"
    elif options.get("listing"):
        words += f" --listing {shlex.quote(options['listing'])}"
    names = "".join(f" {shlex.quote(name)}" for name in options["recaptions"])
    return f"{words} --recaptions{names}" if names else words


def code(text: str) -> str:
    """Any text as a Markdown code span. Nothing in it acts as markup, as one of our markers, or as a new line."""
    plain = "".join(each if each.isprintable() else " " for each in text).replace("<!--", "<! --").strip() or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", plain)), default=0))
    pad = " " if plain[0] == "`" or plain[-1] == "`" else ""
    return f"{fence}{pad}{plain}{pad}{fence}"
