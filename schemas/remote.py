"""A label set behind a URL: byte ranges of its files, fetched once and cached on this machine.

Byte ranges are cached under their hashes, which the label set's index states. So the cache is
verified on every use, shared by all runs and processes of a machine, and never stale.
"""

from __future__ import annotations

import io
import os
import posixpath
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from schemas.errors import LabelSetError, SoftshardsError
from schemas.fingerprint import sha256_bytes
from schemas.journal import ByteRange

if TYPE_CHECKING:
    import diskcache
    from fsspec import AbstractFileSystem

CACHE = "SOFTSHARDS_CACHE"
"""Environment variable: the cache folder; ~/.cache/softshards by default."""

CACHE_GB = "SOFTSHARDS_CACHE_GB"
"""Environment variable: GB to cache, least recently used evicted first; 0 disables the cache."""

ATTEMPTS = 5
PERMANENT_ERRORS = (FileNotFoundError, PermissionError, NotImplementedError, ValueError)
"""Errors that another attempt does not fix."""

FETCH_THREADS = 8
"""Concurrent requests: object stores respond slowly, but to many requests at once."""


@dataclass(frozen=True)
class Remote:
    """The location of a label set on another machine.

    Attributes:
        url: URL of its folder.
        options: options of the filesystem, for fsspec.
    """

    url: str
    options: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def _filesystem(self) -> AbstractFileSystem:
        import fsspec

        filesystem: AbstractFileSystem = fsspec.core.url_to_fs(self.url, **self.options)[0]
        return filesystem

    @cached_property
    def _cache(self) -> diskcache.Cache | None:
        """The cache; None where it is disabled or cannot be opened."""
        limit = _cache_bytes()
        if limit == 0:
            return None
        import diskcache

        folder = os.environ.get(CACHE) or Path.home() / ".cache" / "softshards"
        try:
            return diskcache.Cache(folder, size_limit=limit, eviction_policy="least-recently-used")
        except (OSError, diskcache.Timeout) as error:
            warnings.warn(f"{folder}: not used as a cache: {error}", stacklevel=2)
            return None

    def open(self, url: str) -> BinaryIO:
        """Open a file whose bytes are fetched as they are read."""
        path = _filesystem_path(self._filesystem, url)
        file: BinaryIO = self._filesystem.open(path, "rb", cache_type="none")
        return file

    def names(self, folder: str, pattern: str) -> list[str]:
        """Return the names of files in a folder of the set that match a glob pattern."""
        pattern = _filesystem_path(self._filesystem, f"{self.url}/{folder}/{pattern}")
        return sorted(path.rpartition("/")[2] for path in self._filesystem.glob(pattern))

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Read a file of the set, or its bytes [start, stop), with several attempts.

        Raises:
            FileNotFoundError: the file is missing.
            LabelSetError: the file cannot be read.
        """
        import tenacity

        url = f"{self.url}/{name}"
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_not_exception_type(PERMANENT_ERRORS),
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=tenacity.wait_exponential_jitter(initial=0.5, max=30),
            reraise=True,
        )
        filesystem = self._filesystem
        try:
            data: bytes = attempts(
                filesystem.cat_file, _filesystem_path(filesystem, url), start=start, end=stop
            )
        except FileNotFoundError:
            raise
        except Exception as error:  # each filesystem has errors of its own
            raise LabelSetError(
                f"cannot be read: {type(error).__name__}: {error}",
                path=url,
                hint="check the network and the credentials, and run the same command again: it "
                "resumes",
            ) from error
        return data

    def cached(self, byte_range: ByteRange) -> bytes | None:
        """Return the bytes of a range where the cache holds them intact."""
        data = None if self._cache is None else self._cache.get(byte_range.sha256)
        return data if data is not None and sha256_bytes(data) == byte_range.sha256 else None

    def fetch(self, name: str, byte_range: ByteRange) -> bytes:
        """Return a byte range of a file, from the cache or the URL. The caller must verify it.

        Raises:
            FileNotFoundError: the file is missing.
            LabelSetError: the file cannot be read.
        """
        data = self.cached(byte_range)
        if data is None:
            data = self.read(name, byte_range.start, byte_range.stop)
            if self._cache is not None and sha256_bytes(data) == byte_range.sha256:
                self._store(self._cache, byte_range.sha256, data)
        return data

    def _store(self, cache: diskcache.Cache, digest: str, data: bytes) -> None:
        try:
            cache.set(digest, data, retry=True)
        except OSError as error:  # a full disk: the run needs the bytes, not the copy
            warnings.warn(f"{cache.directory}: cannot cache: {error}", stacklevel=2)


class PartialFile(io.RawIOBase):
    """A read-only file of which one byte range is in memory.

    Args:
        data: the bytes of the range.
        start: offset of the range in the file.
        size: size of the whole file in bytes.
    """

    def __init__(self, data: bytes, start: int, size: int) -> None:
        self._data, self._start, self._size, self._at = memoryview(data), start, size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the read position, and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """Return the read position."""
        return self._at

    def size(self) -> int:
        """Return the size of the whole file in bytes."""
        return self._size

    def read(self, size: int = -1) -> bytes:
        """Read bytes at the read position.

        Raises:
            ValueError: the bytes are outside the range.
        """
        start = self._at - self._start
        stop = len(self._data) if size < 0 else start + size
        if start < 0 or stop > len(self._data):
            raise ValueError(f"bytes {self._at} to {self._at + size} are outside the row group")
        self._at += stop - start
        return bytes(self._data[start:stop])


def join_path(place: str, relative: str) -> str:
    """Return the path or URL of `relative` as seen from the file `place`; URLs are absolute."""
    if is_url(relative) or not is_url(place):
        return relative if is_url(relative) else str(Path(place).parent / relative)
    protocol, _, rest = place.partition("://")
    return f"{protocol}://{posixpath.normpath(posixpath.join(posixpath.dirname(rest), relative))}"


def is_url(path: Path | str) -> bool:
    """Check whether a path is a URL, for fsspec."""
    return isinstance(path, str) and "://" in path


def _filesystem_path(filesystem: AbstractFileSystem, url: str) -> str:
    return str(filesystem._strip_protocol(url))  # as `fsspec.core.url_to_fs` does


def _cache_bytes() -> int:
    text = os.environ.get(CACHE_GB, "10")
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < 1e9:
        raise SoftshardsError(f"{CACHE_GB}={text}: not a number of GB", hint="set it to 10, or 0")
    return int(limit * 1e9)
