"""Groups from pairs: union-find over whole arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from builder.curate.pairs import Numbers, Pairs


def groups_of(count: int, pairs: Pairs) -> Numbers:
    """For each of ``count`` things the smallest number in its group. The order of the pairs does not matter."""
    return joined_groups(np.arange(count, dtype=np.int64), pairs)


def joined_groups(groups: Numbers, pairs: Pairs) -> Numbers:
    """Merge those ``groups`` (from ``groups_of``) that pairs connect."""
    groups = groups.copy()
    first, second = pairs.first, pairs.second
    while True:
        a, b = groups[first], groups[second]
        apart = a != b
        if not apart.any():
            return groups
        first, second, a, b = first[apart], second[apart], a[apart], b[apart]
        np.minimum.at(groups, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(groups, shorter := groups[groups]):
            groups = shorter


def kept_of(groups: Numbers, pixels: npt.NDArray[np.int64]) -> Numbers:
    """For each thing the kept one of its group: the one with the most pixels; of equal ones, the first."""
    order = np.lexsort((np.arange(len(groups)), -pixels, groups))
    leads = np.ones(len(order), dtype=np.bool_)
    leads[1:] = groups[order][1:] != groups[order][:-1]
    kept = np.empty(len(groups), dtype=np.int64)
    kept[order] = order[leads][np.cumsum(leads) - 1]
    return kept


def mirrored_from(kept: Numbers, pairs: Pairs) -> npt.NDArray[np.bool_]:
    """Which things are mirror images of the kept one of their group, judged by the pairs that made the groups.

    Every thing has two nodes: as it is, and mirrored. A plain pair joins equal nodes, a mirrored pair joins opposite
    nodes. If a group's picture is its own mirror image, both nodes lie in one group and nothing counts as mirrored.
    """
    count = len(kept)
    other = np.where(pairs.mirrored, count, 0)
    doubled = Pairs(
        np.concatenate([pairs.first, pairs.first + count]),
        np.concatenate([pairs.second + other, pairs.second + count - other]),
        np.concatenate([pairs.mirrored, pairs.mirrored]),
    )
    sides = groups_of(2 * count, doubled)
    return np.asarray(sides[:count] != sides[kept])
