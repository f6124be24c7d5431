"""Memory for batches of images, used again instead of being fetched from the system each time."""

from __future__ import annotations

from functools import cache

import numpy as np

_LARGEST = (32 << 20) - (64 << 10)
"""Bytes: just under glibc's DEFAULT_MMAP_THRESHOLD_MAX, 32 MiB on 64-bit machines."""


@cache
def keep_freed_memory() -> None:
    """Have this process keep up to 64 MiB of what it frees.

    A block of 128 KiB or more is a map of its own in glibc, given back when it is freed: the next batch pays a page
    fault for every 4 KiB of its images again, which took three times as long as reading them. But freeing such a block
    once tells glibc to keep blocks up to that size from then on (mallopt(3), M_MMAP_THRESHOLD). So one is freed, of
    which not a byte was touched. Other allocators are none the worse for it.
    """
    np.empty(_LARGEST, np.uint8)
