"""Local paths and URLs of inputs, opened with fsspec, with errors that the user can act on."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from schemas import SoftshardsError
from schemas.errors import first_line, missing_driver
from schemas.fingerprint import sha256_file

BLOCK = 1 << 20
CONTENT_FACTS = ("contentmd5", "md5hash", "blobid", "etag", "crc32c")
TIME_FACTS = ("lastmodified", "mtime", "updated", "created")
"""What object stores report about a file's content, or else its age; the best first."""


def open_location(text: str) -> tuple[AbstractFileSystem, str]:
    """Return the file system of a path or URL, and the path on it.

    Raises:
        SoftshardsError: the kind of URL is unknown, or the package for it is missing.
    """
    try:
        fs, path = fsspec.core.url_to_fs(text)
        return fs, path
    except ImportError as error:
        raise missing_driver(error, text) from error
    except ValueError as error:
        hint = "give a path, or a URL such as https://, s3://, gs:// or file://"
        raise SoftshardsError(f"no such kind of URL: {error}", path=text, hint=hint) from error


def is_local(fs: AbstractFileSystem) -> bool:
    """Return whether paths of `fs` are paths on this machine."""
    return isinstance(fs, LocalFileSystem)


def is_http(fs: AbstractFileSystem) -> bool:
    """Return whether `fs` is the web, where a listing is a guess and `?` begins a query."""
    return "http" in fs.protocol


def display_path(fs: AbstractFileSystem, path: str) -> str:
    """Return the path or URL for a message."""
    return path if is_local(fs) else str(fs.unstrip_protocol(path))


@contextlib.contextmanager
def as_input_errors(
    fs: AbstractFileSystem,
    where: str,
    hint: str,
    local_errors: tuple[type[Exception], ...] = (OSError,),
) -> Iterator[None]:
    """Turn the errors of file systems and readers into one that names the input.

    Args:
        fs: the file system. Drivers of remote ones raise any type.
        where: the input, for the message.
        hint: for the message.
        local_errors: errors to turn if the file system is local.

    Raises:
        SoftshardsError: `where` cannot be read.
    """
    errors = local_errors if is_local(fs) else (Exception,)
    try:
        yield
    except SoftshardsError:
        raise
    except errors as error:
        what = f"cannot be read: {first_line(error)}"
        raise SoftshardsError(what, path=where, hint=hint) from error


@contextlib.contextmanager
def open_stream(
    fs: AbstractFileSystem, path: str, *, seekable: bool
) -> Iterator[io.BufferedReader]:
    """Open a file's bytes.

    Args:
        fs: the file system.
        path: the file's path on it.
        seekable: copy a remote file to disk first, instead of streaming it.
    """
    if is_local(fs):
        with Path(path).open("rb") as stream:
            yield stream
    elif seekable:
        with tempfile.NamedTemporaryFile(prefix="softshards-") as copy:
            fs.get_file(path, copy.name)
            with Path(copy.name).open("rb") as stream:
                yield stream
    else:
        # With blocks, fsspec would request ranges, which not every web server supports.
        options = {"block_size": 0} if is_http(fs) else {}
        with fs.open(path, "rb", **options) as raw, io.BufferedReader(raw, BLOCK) as stream:
            yield stream


def content_digest(fs: AbstractFileSystem, path: str) -> str:
    """Return a string that changes with the file: its SHA-256, or what a remote store reports."""
    if is_local(fs):
        return sha256_file(Path(path))
    info = fs.info(path)
    plain = {name.lower().replace("-", "").replace("_", ""): v for name, v in info.items() if v}
    known = next((n for n in CONTENT_FACTS + TIME_FACTS if n in plain), None)
    fact = f"{known} {plain[known]}" if known else f"key {fs.ukey(path)}"
    return f"{fact}, {info.get('size')} bytes"
