"""Where inputs are: local paths and URLs, opened with fsspec, with errors a user can act on."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from labeler.labeling.inputs.file_formats import READ_ERRORS, SEEKABLE
from schemas import SoftshardsError
from schemas.errors import first_line
from schemas.fingerprint import sha256_file

BLOCK = 1 << 20
CONTENT_FACTS = ("contentmd5", "md5hash", "blobid", "etag", "crc32c")
TIME_FACTS = ("lastmodified", "mtime", "updated", "created")
"""What a store may say of a file's content, or else of its age, best first."""


def open_place(text: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a path or URL, and the path there.

    Raises:
        SoftshardsError: it is no known kind of URL, or the package for its kind is missing.
    """
    try:
        return fsspec.core.url_to_fs(text)
    except ImportError as error:
        package = getattr(error.__cause__ or error, "name", None)
        hint = f"pip install {package}" if package else "install the package that it names"
        raise SoftshardsError(f"no driver for this URL: {error}", path=text, hint=hint) from error
    except ValueError as error:
        hint = "give a path, or a URL such as https://, s3://, gs:// or file://"
        raise SoftshardsError(f"no such kind of URL: {error}", path=text, hint=hint) from error


def is_local(fs: AbstractFileSystem) -> bool:
    """Whether paths of `fs` are paths of this machine."""
    return isinstance(fs, LocalFileSystem)


def is_http(fs: AbstractFileSystem) -> bool:
    """Whether `fs` is the web, where a listing is a guess and `?` begins a query."""
    return "http" in fs.protocol


def shown(fs: AbstractFileSystem, path: str) -> str:
    """The path or URL for a message."""
    return path if is_local(fs) else str(fs.unstrip_protocol(path))


@contextlib.contextmanager
def named_errors(fs: AbstractFileSystem, where: str, hint: str) -> Iterator[None]:
    """Turn what file systems and readers raise into an error that names the file.

    Raises:
        SoftshardsError: `where` cannot be read.
    """
    # Remote drivers raise whatever the libraries beneath them do.
    errors = READ_ERRORS if is_local(fs) else (Exception,)
    try:
        yield
    except SoftshardsError:
        raise
    except errors as error:
        what = f"cannot be read: {first_line(error)}"
        raise SoftshardsError(what, path=where, hint=hint) from error


@contextlib.contextmanager
def opened(fs: AbstractFileSystem, path: str, suffix: str) -> Iterator[io.BufferedReader]:
    """A file's bytes. Remote files are streamed; those that must seek are copied to disk first."""
    if is_local(fs):
        with Path(path).open("rb") as stream:
            yield stream
    elif suffix in SEEKABLE:
        with tempfile.NamedTemporaryFile(prefix="softshards-") as copy:
            fs.get_file(path, copy.name)
            with Path(copy.name).open("rb") as stream:
                yield stream
    else:
        # With blocks, fsspec would ask for ranges, which not every web server knows.
        options = {"block_size": 0} if is_http(fs) else {}
        with fs.open(path, "rb", **options) as raw, io.BufferedReader(raw, BLOCK) as stream:
            yield stream


def content_digest(fs: AbstractFileSystem, path: str) -> str:
    """What changes when the file does: SHA-256, or what a remote store says of the file."""
    if is_local(fs):
        return sha256_file(Path(path))
    told = fs.info(path)
    plain = {name.lower().replace("-", "").replace("_", ""): v for name, v in told.items() if v}
    known = next((n for n in CONTENT_FACTS + TIME_FACTS if n in plain), None)
    fact = f"{known} {plain[known]}" if known else f"key {fs.ukey(path)}"
    return f"{fact}, {told.get('size')} bytes"
