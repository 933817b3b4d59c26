"""Byte ranges of remote shards on this machine: plain files, each named by the hash of its bytes.

Nothing but bytes is read from them, and their hash is compared on every use. So the cache is shared
by all runs and processes of a user, and it is never stale, whoever wrote into its folder.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from schemas.atomic import TMP_PREFIX
from schemas.fingerprint import sha256_bytes

FOLDER = "ranges"
ABANDONED_SECONDS = 3600
"""Age from which a temporary file belongs to a killed process."""


@dataclass(frozen=True)
class RangeCache:
    """A folder of byte ranges, the least recently used of which are deleted first.

    Attributes:
        folder: readable by this user alone.
        limit: bytes to keep. Processes that store at the same moment may exceed it by one range
            each.
    """

    folder: Path
    limit: int

    def get(self, digest: str, size: int) -> bytes | None:
        """Return the `size` bytes with this hash, where the cache has them intact."""
        path = self._path(digest)
        try:
            # Without O_NONBLOCK, opening a named pipe waits for a writer.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                facts = os.fstat(descriptor)
                if not stat.S_ISREG(facts.st_mode) or facts.st_size != size:
                    return None
                data = file.read()
        except OSError:
            return None
        if sha256_bytes(data) != digest:
            return None
        with suppress(OSError):  # deleted meanwhile
            os.utime(path)
        return data

    def put(self, digest: str, data: bytes) -> None:
        """Store bytes under their hash, and delete the least recently used ones beyond the limit.

        Raises:
            OSError: they cannot be written.
        """
        if len(data) > self.limit:
            return
        self._shrink(self.limit - len(data))
        path = self._path(digest)
        tmp = path.with_name(f"{TMP_PREFIX}{secrets.token_hex(8)}")
        try:
            tmp.write_bytes(data)
            tmp.replace(path)
        except OSError:
            tmp.unlink(missing_ok=True)
            raise

    def _path(self, digest: str) -> Path:
        if re.fullmatch("[0-9a-f]{64}", digest) is None:
            raise ValueError(f"{digest!r} is not a SHA-256")
        return self.folder / digest

    def _shrink(self, limit: int) -> None:
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= limit:
                return
            with suppress(FileNotFoundError):  # another process was faster
                path.unlink()
            total -= size

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Yield (time of the last use, size, path) of the files; delete abandoned ones."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    facts = entry.stat(follow_symlinks=False)
                    is_temporary = entry.name.startswith(TMP_PREFIX)
                    if not is_temporary:
                        yield facts.st_mtime, facts.st_size, Path(entry.path)
                    elif time.time() - facts.st_mtime > ABANDONED_SECONDS:
                        Path(entry.path).unlink()


def open_range_cache(folder: Path, limit: int) -> RangeCache:
    """Return the cache in a folder, which is made if it is missing.

    Args:
        folder: the folder for all caches of this project.
        limit: bytes to keep.

    Raises:
        OSError: it cannot be made, it is a link, or it belongs to another user.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    own = folder / FOLDER
    with suppress(FileExistsError):
        own.mkdir(mode=0o700)
    facts = own.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
        raise PermissionError(f"{own} is not a folder of this user")
    if stat.S_IMODE(facts.st_mode) != 0o700:
        own.chmod(0o700)
    return RangeCache(own, limit)
