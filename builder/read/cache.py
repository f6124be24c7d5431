"""Where indexes are kept that do not lie beside their data."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress


def cache_folder() -> str:
    """``LAION6M_CACHE``, else ~/.cache/laion6m; a temporary folder where that cannot be written."""
    home = os.path.abspath(os.path.expanduser(os.environ.get("LAION6M_CACHE") or "~/.cache/laion6m"))
    with suppress(OSError):
        os.makedirs(home, exist_ok=True)
        if os.access(home, os.W_OK):
            return home
    return tempfile.mkdtemp(prefix="laion6m-")
