"""The folder of what softshards keeps on this machine to save time: `SOFTSHARDS_CACHE`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

CACHE = "SOFTSHARDS_CACHE"
"""Environment variable; ~/.cache/softshards by default."""

STAGING = "staging"


def cache_folder() -> Path:
    """Return the folder, which need not exist."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "softshards")


def staging_folder(url: str, writer: str = "0-of-1") -> Path:
    """Return the folder through which a writer's files pass on their way to a label set at a URL.

    Args:
        url: the URL of the set's folder.
        writer: the rank of the process, and the number of ranks: each has a folder of its own.
    """
    name = hashlib.sha256(f"{url.rstrip('/')} {writer}".encode()).hexdigest()[:24]
    return cache_folder() / STAGING / name
