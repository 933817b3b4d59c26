"""A label set behind a URL: stretches of its files, fetched once, and kept on this machine.

Stretches are kept under the hash of their bytes, which the label set's index states: what is kept
is proved whenever it is used, is shared by all runs and processes of a machine, and never goes
stale.
"""

from __future__ import annotations

import io
import os
import posixpath
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from schemas.errors import LabelSetError, SoftshardsError
from schemas.fingerprint import sha256_bytes
from schemas.journal import ByteRange

CACHE = "SOFTSHARDS_CACHE"
"""Environment variable: the folder where stretches are kept; ~/.cache/softshards by default."""

CACHE_GB = "SOFTSHARDS_CACHE_GB"
"""Environment variable: how many GB are kept, the least recently used go first; 0 keeps none."""

ATTEMPTS = 5
FOR_GOOD = (FileNotFoundError, PermissionError, NotImplementedError, ValueError)
"""Errors that trying again does not hint."""

FETCH_THREADS = 8
"""Stretches that are fetched at once: object stores answer late, and many requests alike."""


@dataclass(frozen=True)
class Remote:
    """Where a set lies that is not on this machine.

    Attributes:
        url: of its folder. options: of fsspec's filesystem.
    """

    url: str
    options: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def _filesystem(self) -> Any:
        import fsspec

        return fsspec.core.url_to_fs(self.url, **self.options)[0]

    @cached_property
    def _cache(self) -> Any:
        """`diskcache.Cache`, or None where nothing is to be kept."""
        limit = _cache_bytes()
        if limit == 0:
            return None
        import diskcache

        folder = os.environ.get(CACHE) or Path.home() / ".cache" / "softshards"
        try:
            return diskcache.Cache(folder, size_limit=limit, eviction_policy="least-recently-used")
        except (OSError, diskcache.Timeout) as error:
            warnings.warn(f"nothing is kept in {folder}: {error}", stacklevel=2)
            return None

    def open(self, url: str) -> Any:
        """A file, of which only what is asked for is read."""
        return self._filesystem.open(_place(self._filesystem, url), "rb", cache_type="none")

    def names(self, folder: str, pattern: str) -> list[str]:
        """Names of the files in one of the set's folders that a glob pattern matches."""
        found = self._filesystem.glob(_place(self._filesystem, f"{self.url}/{folder}/{pattern}"))
        return sorted(path.rpartition("/")[2] for path in found)

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """A file of the set, or bytes [start, stop) of it; asked for several times if need be.

        Raises:
            FileNotFoundError: there is no such file.
            LabelSetError: it cannot be read.
        """
        import tenacity

        url = f"{self.url}/{name}"
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_not_exception_type(FOR_GOOD),
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=tenacity.wait_exponential_jitter(initial=0.5, max=30),
            reraise=True,
        )
        filesystem = self._filesystem
        try:
            return attempts(filesystem.cat_file, _place(filesystem, url), start=start, end=stop)
        except FileNotFoundError:
            raise
        except Exception as error:  # each filesystem has errors of its own
            raise LabelSetError(
                f"cannot be read: {type(error).__name__}: {error}",
                path=url,
                hint="look at the network and the credentials; the same command goes on where it "
                "was",
            ) from error

    def kept(self, stretch: ByteRange) -> bytes | None:
        """A stretch's bytes, where they are here and whole."""
        data = None if self._cache is None else self._cache.get(stretch.sha256)
        return data if data is not None and sha256_bytes(data) == stretch.sha256 else None

    def fetch(self, name: str, stretch: ByteRange) -> bytes:
        """A stretch of a file, from here or from there; it is for the caller to check it.

        Raises:
            FileNotFoundError, LabelSetError: as `read`.
        """
        data = self.kept(stretch)
        if data is None:
            data = self.read(name, stretch.start, stretch.stop)
            if self._cache is not None and sha256_bytes(data) == stretch.sha256:
                self._keep(stretch.sha256, data)
        return data

    def _keep(self, digest: str, data: bytes) -> None:
        try:
            self._cache.set(digest, data, retry=True)
        except OSError as error:  # a full disk: the run needs the bytes, not the copy
            warnings.warn(f"{self._cache.directory}: cannot keep: {error}", stacklevel=2)


class Stretch(io.RawIOBase):
    """A file of which only a stretch is there, in memory.

    Args:
        data: the bytes. start: their place in the file. size: the file's.
    """

    def __init__(self, data: bytes, start: int, size: int) -> None:
        self._data, self._start, self._size, self._at = memoryview(data), start, size, 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of any file."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """As of any file."""
        return self._at

    def size(self) -> int:
        """Bytes of the whole file."""
        return self._size

    def read(self, size: int = -1) -> bytes:
        """Bytes from here on.

        Raises:
            ValueError: they are outside the stretch.
        """
        start = self._at - self._start
        stop = len(self._data) if size < 0 else start + size
        if start < 0 or stop > len(self._data):
            raise ValueError(f"bytes {self._at} to {self._at + size} are outside the row group")
        self._at += stop - start
        return bytes(self._data[start:stop])


def join(place: str, relative: str) -> str:
    """Path or URL of what is `relative` to the file at `place`; a URL stays as it is."""
    if is_url(relative) or not is_url(place):
        return relative if is_url(relative) else str(Path(place).parent / relative)
    protocol, _, rest = place.partition("://")
    return f"{protocol}://{posixpath.normpath(posixpath.join(posixpath.dirname(rest), relative))}"


def is_url(path: Path | str) -> bool:
    """Is this a URL that fsspec may know?"""
    return isinstance(path, str) and "://" in path


def _place(filesystem: Any, url: str) -> str:
    return str(filesystem._strip_protocol(url))  # as `fsspec.core.url_to_fs` has it


def _cache_bytes() -> int:
    text = os.environ.get(CACHE_GB, "10")
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < 1e9:
        raise SoftshardsError(
            f"{CACHE_GB}={text}: not a number of GB", hint="set it to 10, say, or to 0"
        )
    return int(limit * 1e9)
