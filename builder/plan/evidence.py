"""Find recaptions that were joined with the wrong images. A sample is checked before any work begins."""

from __future__ import annotations

import json
from contextlib import closing

from builder.base.errors import SourceError
from builder.plan.plan import Plan
from builder.source.captions import contradiction
from builder.source.layout import Layout
from builder.source.scan import open_archive, read_member

_SAMPLE = 100  # rows checked, evenly spaced
_FAR_SAMPLE = 8  # behind a URL, where each costs a request or two


def refuse_contradicted(layout: Layout, plan: Plan) -> None:
    """Raises SourceError if most rows of a sample contradict the sidecars of their images."""
    stated, wrong, example = 0, 0, ""
    most = min(len(plan.rows), _FAR_SAMPLE if layout.is_remote else _SAMPLE)
    for number in range(most):
        row = plan.rows.slice(number * len(plan.rows) // most, 1).to_pylist()[0]
        if row["annotation_archive"] < 0 or not row["recaption"]:
            continue
        archive = layout.annotations[row["annotation_archive"]]
        if archive.is_folder:
            data = read_member(layout.captions_root, row["annotation_path"])
        else:
            with closing(open_archive(archive, in_order=False)) as file:
                data = file.read_at(row["annotation_offset"], row["annotation_size"])
        try:
            sidecar, recaption = json.loads(data), json.loads(row["recaption"])
        except (ValueError, RecursionError):
            continue
        if isinstance(sidecar, dict) and isinstance(recaption, dict):
            words = contradiction(sidecar, recaption)
            stated += 1
            wrong += bool(words)
            example = example or (f"{row['path']}: {words}" if words else "")
    if wrong > stated / 2:
        raise SourceError(
            f"the recaptions belong to other images: {wrong} of {stated} that were compared contradict their image's "
            f"sidecar, such as {example}. Join them by another field: --on url or --on sha256."
        )
