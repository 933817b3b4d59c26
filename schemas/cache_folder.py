"""The folder of what softshards keeps on this machine to save time: `SOFTSHARDS_CACHE`."""

from __future__ import annotations

import os
from pathlib import Path

CACHE = "SOFTSHARDS_CACHE"
"""Environment variable; ~/.cache/softshards by default."""


def cache_folder() -> Path:
    """Return the folder, which need not exist."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "softshards")
