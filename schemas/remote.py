"""A label set behind a URL: byte ranges of its files, fetched once and cached on this machine.

Byte ranges are cached under their hashes, which the label set's index states (`range_cache`).
Options (headers, keys) go to the URL's own host and nowhere else.
"""

from __future__ import annotations

import glob
import hashlib
import io
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

from schemas.atomic import atomic_path
from schemas.cache_folder import cache_folder
from schemas.errors import SoftshardsError
from schemas.fingerprint import sha256_bytes
from schemas.journal import ByteRange
from schemas.range_cache import RangeCache, open_range_cache
from schemas.store_errors import as_store_error
from schemas.urls import is_url as is_url

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

T = TypeVar("T")
CACHE_GB = "SOFTSHARDS_CACHE_GB"
"""Environment variable: GB to cache, least recently used evicted first; 0 disables the cache."""

ATTEMPTS = 5
COPY_BYTES = 1 << 24
PERMANENT_ERRORS = (
    *(FileNotFoundError, FileExistsError, PermissionError, NotImplementedError, ValueError),
)
"""Errors that another attempt does not fix."""

MISSING_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
"""Errors of botocore and google.auth, which are plain exceptions."""

FETCH_THREADS = 8
"""Concurrent requests: object stores respond slowly, but to many requests at once."""


@dataclass(frozen=True)
class Remote:
    """The location of a label set on another machine.

    Attributes:
        url: URL of its folder.
        options: options of the filesystem, for fsspec.
        is_cached: take byte ranges from the cache of this machine, and keep them there.
    """

    url: str
    options: dict[str, Any] = field(default_factory=dict)
    is_cached: bool = True

    @cached_property
    def filesystem(self) -> AbstractFileSystem:
        """The filesystem of the URL, for fsspec."""
        import fsspec

        options = dict(self.options)
        if self.url.startswith(("http://", "https://")):
            options |= {"skip_instance_cache": True, "client_kwargs": self._client_options()}
        filesystem: AbstractFileSystem = fsspec.core.url_to_fs(self.url, **options)[0]
        return filesystem

    def place_of(self, name: str) -> str:
        """Return the path of a file of the set on its filesystem."""
        return _filesystem_path(self.filesystem, f"{self.url}/{name}" if name else self.url)

    def _client_options(self) -> dict[str, Any]:
        """Return HTTP options that refuse wrong answers before they are read.

        No redirect takes the options to another origin, and no range is answered by a whole file.
        """
        import aiohttp

        url, has_options = self.url, bool(self.options)

        async def check_answer(_: object, __: object, end: aiohttp.TraceRequestEndParams) -> None:
            if "Range" in end.headers and end.response.status == HTTPStatus.OK:
                raise ValueError(
                    "the server ignores byte ranges (as `python -m http.server` does), and label "
                    "sets are read in parts"
                )

        async def check_redirect(
            _: object, __: object, redirect: aiohttp.TraceRequestRedirectParams
        ) -> None:
            target = urljoin(url, redirect.response.headers.get("Location", ""))
            if has_options and origin(target) != origin(url):
                raise ValueError(
                    f"the server redirects to {urlsplit(target).netloc}, and the options given for "
                    f"{urlsplit(url).netloc} are not sent there"
                )

        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(check_redirect)
        trace.on_request_end.append(check_answer)
        given = dict(self.options.get("client_kwargs") or {})
        return given | {"trace_configs": [*given.get("trace_configs", []), trace]}

    @cached_property
    def _cache(self) -> RangeCache | None:
        """The cache; None where it is disabled or cannot be used."""
        limit = _cache_bytes() if self.is_cached else 0
        if limit == 0:
            return None
        folder = cache_folder()
        try:
            return open_range_cache(folder, limit)
        except OSError as error:
            warnings.warn(f"{folder}: not used as a cache: {error}", stacklevel=2)
            return None

    def names(self, folder: str, pattern: str) -> list[str]:
        """Return the names of files in a folder of the set that match a glob pattern.

        Raises:
            StoreError: the store does not answer.
        """

        def find() -> list[str]:
            self.filesystem.invalidate_cache()
            place = glob.escape(self.place_of(folder))
            return list(self.filesystem.glob(f"{place}/{pattern}"))

        with as_store_error(f"{self.url}/{folder}"):
            paths = retried(ATTEMPTS, find)
        return sorted(path.rpartition("/")[2] for path in paths)

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Read a file of the set, or its bytes [start, stop), with several attempts.

        Raises:
            FileNotFoundError: the file is missing.
            StoreError: the file cannot be read.
        """
        with as_store_error(f"{self.url}/{name}", FileNotFoundError):
            return retried(ATTEMPTS, self._read, self.place_of(name), start, stop)

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a file of the set, which is not kept in memory.

        Raises:
            FileNotFoundError: the file is missing.
            StoreError: the file cannot be read.
        """

        def digest() -> str:
            self.filesystem.invalidate_cache()
            with self.filesystem.open(self.place_of(name), "rb", cache_type="readahead") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()

        with as_store_error(f"{self.url}/{name}", FileNotFoundError):
            return retried(ATTEMPTS, digest)

    def _read(self, place: str, start: int | None, stop: int | None) -> bytes:
        for _ in range(2):
            data: bytes = self.filesystem.cat_file(place, start=start, end=stop)
            if start is None or stop is None or len(data) == stop - start:
                break  # else the answer was cut off, or the file was, which its hash will tell
        return data

    def cached(self, byte_range: ByteRange) -> bytes | None:
        """Return the bytes of a range where the cache holds them intact."""
        if self._cache is None:
            return None
        return self._cache.get(byte_range.sha256, byte_range.stop - byte_range.start)

    def copy(self, name: str, path: Path) -> None:
        """Copy a file of the set to a path, a part at a time.

        Raises:
            FileNotFoundError: there is no such file.
            StoreError: the store does not answer, or refuses.
        """

        def bring() -> None:
            self.filesystem.invalidate_cache()
            with (
                self.filesystem.open(self.place_of(name), "rb", cache_type="readahead") as file,
                atomic_path(path) as tmp,
                tmp.open("wb") as target,
            ):
                shutil.copyfileobj(file, target, COPY_BYTES)
                if file.size is not None and target.tell() != file.size:
                    raise OSError(f"the store sent {target.tell()} bytes of {file.size}")

        with as_store_error(f"{self.url}/{name}", FileNotFoundError):
            retried(ATTEMPTS, bring)

    def fetch(self, name: str, byte_range: ByteRange) -> bytes:
        """Return a byte range of a file, from the cache or the URL. The caller must verify it.

        Raises:
            FileNotFoundError: the file is missing.
            StoreError: the file cannot be read.
        """
        data = self.cached(byte_range)
        if data is None:
            data = self.read(name, byte_range.start, byte_range.stop)
            if self._cache is not None and sha256_bytes(data) == byte_range.sha256:
                try:
                    self._cache.put(byte_range.sha256, data)
                except OSError as error:  # a full disk: the run needs the bytes, not the copy
                    warnings.warn(f"{self._cache.folder}: cannot cache: {error}", stacklevel=2)
        return data


class PartialFile(io.RawIOBase):
    """A read-only file of which parts of one byte range are in memory, or can be fetched.

    Args:
        data: the bytes at the start of the range.
        start: offset of the range in the file.
        size: size of the whole file in bytes.
        stop: end of the range; by default the end of `data`.
        fetch: returns bytes [start, stop) of the file.
    """

    def __init__(
        self,
        data: bytes | memoryview,
        start: int,
        size: int,
        *,
        stop: int | None = None,
        fetch: Callable[[int, int], bytes] | None = None,
    ) -> None:
        self._parts = [(start, memoryview(data))]
        self._start, self._stop = start, start + len(data) if stop is None else stop
        self._size, self._at, self._fetch = size, 0, fetch

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

    def load(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Fetch byte ranges that are not in memory, each in one request.

        Raises:
            ValueError: a range is outside the row group.
        """
        for start, stop in ranges:
            if not self._start <= start <= stop <= self._stop:
                raise ValueError(f"bytes {start} to {stop} are outside the row group")
            if self._fetch is not None and self._find(start, stop) is None:
                self._parts.append((start, memoryview(self._fetch(start, stop))))

    def view(self, start: int, stop: int) -> memoryview:
        """Return bytes [start, stop), which must be in memory.

        Raises:
            ValueError: they are not.
        """
        found = self._find(start, stop)
        if found is None:
            raise ValueError(f"bytes {start} to {stop} are outside the row group")
        return found

    def read(self, size: int = -1) -> bytes:
        """Read bytes at the read position.

        Raises:
            ValueError: the bytes are not in memory.
        """
        stop = self._stop if size < 0 else self._at + size
        data = bytes(self.view(self._at, stop))
        self._at = stop
        return data

    def _find(self, start: int, stop: int) -> memoryview | None:
        for at, part in self._parts:
            if at <= start <= stop <= at + len(part):
                return part[start - at : stop - at]
        return None


def retried(attempts: int, call: Callable[..., T], *arguments: Any) -> T:
    """Call a function again, with growing pauses, after errors that may pass.

    Args:
        attempts: most calls.
        call: the function.
        arguments: its arguments.

    Raises:
        Exception: the last error, or the first that another attempt does not fix.
    """
    import tenacity

    again = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_may_pass),
        stop=tenacity.stop_after_attempt(attempts),
        wait=tenacity.wait_exponential_jitter(initial=0.5, max=30),
        reraise=True,
    )
    return again(call, *arguments)


def _may_pass(error: BaseException) -> bool:
    """Return whether another attempt may succeed: not after Ctrl-C, and not without credentials."""
    return (
        isinstance(error, Exception)
        and not isinstance(error, PERMANENT_ERRORS)
        and type(error).__name__ not in MISSING_CREDENTIALS
    )


def origin(url: str) -> tuple[str, str]:
    """Return the scheme and the host or bucket of a URL."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


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
