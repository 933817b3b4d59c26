"""Write the files of a label set into an object store, through fsspec, with several attempts.

A store keeps an object whole or not at all, but has no rename and no locks. What stands in for
them is `create`: it writes an object only where there is none.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.remote import Remote, retried
from schemas.store_errors import StoreError, as_store_error

ATTEMPTS = 4
"""Of each request, beside the attempts of the store's own library (of S3, five)."""
READ_ONLY = ("http", "https")
NO_CREATE = "two processes could write into one label set"
"""What happens in a store that cannot write an object only where there is none."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An object in a listing: its size in bytes, and what changes when it is written again."""

    size: int
    stamp: str


def require_writable(remote: Remote) -> None:
    """Refuse a place that cannot be written to, or that has no lock and nothing that makes one.

    fsspec's general way to write a new file looks for an old one first, and two processes that look
    at the same moment both find none. Stores with conditional writes have a method of their own.

    Raises:
        StoreError: with what to use instead.
    """
    with _as_write_error(remote, ""):
        filesystem = remote.filesystem
    from fsspec.asyn import AsyncFileSystem  # imported with the first filesystem
    from fsspec.implementations.local import LocalFileSystem
    from fsspec.spec import AbstractFileSystem

    is_async = isinstance(filesystem, AsyncFileSystem)
    name, base = ("_pipe_file", AsyncFileSystem) if is_async else ("pipe_file", AbstractFileSystem)
    general = getattr(type(filesystem), name) is getattr(base, name)
    if general:
        raise StoreError(
            f"this kind of store cannot write an object only where there is none: {NO_CREATE}",
            path=remote.url,
            hint="give its path, without the URL's scheme"
            if isinstance(filesystem, LocalFileSystem)
            else "write into a folder, and copy it there",
        )


def require_conditional_writes(remote: Remote, name: str, other: bytes) -> None:
    """Refuse a store that writes over an object although it was told not to.

    Args:
        remote: the location of the set.
        name: an object that this process has just created, and nobody else writes.
        other: bytes that differ from its content.

    Raises:
        StoreError: it has written over the object, which is deleted.
    """
    try:
        create(remote, name, other)
    except FileExistsError:
        return
    delete(remote, [name])
    raise StoreError(
        f"the store ignores the condition of a write (If-None-Match): {NO_CREATE}",
        path=remote.url,
        hint="write into a folder, and copy it there, or use a store with conditional writes, such "
        "as S3, MinIO, Google Cloud Storage or Azure",
    )


def is_web(remote: Remote) -> bool:
    """Check whether a location is on a web server, which can be neither listed nor written to."""
    return remote.url.partition("://")[0] in READ_ONLY


def list_files(remote: Remote) -> dict[str, StoredFile]:
    """Return all files of a set, by name; none where there is no set.

    Raises:
        StoreError: the store does not answer.
    """

    def find() -> dict[str, StoredFile]:
        remote.filesystem.invalidate_cache()
        root = remote.place_of("")
        try:
            found = remote.filesystem.find(root, detail=True)
        except FileNotFoundError:
            return {}
        return {
            path[len(root) :].lstrip("/"): StoredFile(int(info["size"] or 0), _stamp(info))
            for path, info in found.items()
        }

    with as_store_error(remote.url):
        return retried(ATTEMPTS, find)


def list_names(remote: Remote, prefix: str) -> list[str]:
    """Return the names in the set's own folder that begin with `prefix`, sorted.

    Raises:
        StoreError: the store does not answer.
    """

    def names() -> list[str]:
        remote.filesystem.invalidate_cache()
        try:
            paths = remote.filesystem.ls(remote.place_of(""), detail=False)
        except FileNotFoundError:
            return []
        found = (path.rstrip("/").rpartition("/")[2] for path in paths)
        return sorted(name for name in found if name.startswith(prefix))

    with _as_write_error(remote, ""):
        return retried(ATTEMPTS, names)


def put(remote: Remote, name: str, source: Path | bytes, *, attempts: int = ATTEMPTS) -> None:
    """Write an object, over an older one; large files in parts.

    Raises:
        StoreError: the store refuses or does not answer. The older object is unchanged, or,
            where only the answer was lost, replaced.
    """
    with _as_write_error(remote, name):
        retried(attempts, _put, remote, name, source, "overwrite")


def create(remote: Remote, name: str, data: bytes) -> None:
    """Write an object where there is none.

    An object that is already there with the same bytes counts as written: the answer to an earlier
    attempt may have been lost.

    Raises:
        FileExistsError: there is an object with other bytes.
        StoreError: the store refuses or does not answer.
    """

    def attempt() -> None:
        try:
            _put(remote, name, data, "create")
        except Exception as error:
            try:
                found = _read_back(remote, name)
            except Exception as second:
                if isinstance(error, FileExistsError):  # perhaps this process's own
                    raise
                raise error from second
            if found is None:
                raise
            if found != data:
                raise FileExistsError(name) from error

    with _as_write_error(remote, name):
        retried(ATTEMPTS, attempt)


def delete(remote: Remote, names: Sequence[str]) -> None:
    """Delete objects; those that are missing already do not matter.

    Raises:
        StoreError: the store refuses or does not answer.
    """

    def remove() -> None:
        places = [remote.place_of(name) for name in names]
        try:
            remote.filesystem.rm([glob.escape(place) for place in places])
        except FileNotFoundError:  # by an earlier attempt whose answer was lost, or one of several
            for place in places:
                if remote.filesystem.exists(place):
                    remote.filesystem.rm_file(place)

    if names:
        with _as_write_error(remote, names[0]):
            retried(ATTEMPTS, remove)


def abort_uploads(remote: Remote, is_own: Callable[[str], bool]) -> int:
    """Abort uploads in parts that a killed process left: they are invisible, and are paid for.

    Only S3 keeps them without end; the other stores delete theirs.

    Args:
        remote: the location of the set.
        is_own: whether no other process can be writing the file of this name.

    Returns:
        The number of aborted uploads.
    """
    filesystem: Any = remote.filesystem
    if "s3" not in filesystem.protocol or not hasattr(filesystem, "call_s3"):
        return 0
    bucket, root, _ = filesystem.split_path(remote.place_of("").rstrip("/") + "/")
    aborted, page, listed = 0, {"Bucket": bucket, "Prefix": root}, False
    with _as_write_error(remote, ""):
        while not listed:  # a page has at most 1,000
            try:
                answer = filesystem.call_s3("list_multipart_uploads", **page)
            except OSError:  # not every key may list them, nor every store has them
                break
            for upload in answer.get("Uploads") or []:
                if is_own(upload["Key"].removeprefix(root).lstrip("/")):
                    filesystem.abort_mpu(bucket, upload["Key"], upload["UploadId"])
                    aborted += 1
            last = {name: answer.get(f"Next{name}") for name in ("KeyMarker", "UploadIdMarker")}
            listed = not answer.get("IsTruncated") or None in last.values() or page == page | last
            page |= last
    return aborted


@contextmanager
def _as_write_error(remote: Remote, name: str) -> Iterator[None]:
    """Raise errors of the filesystem as one that names the object; a `FileExistsError` passes."""
    where = f"{remote.url}/{name}" if name else remote.url
    if is_web(remote):
        raise StoreError(
            "a web server cannot be written to",
            path=where,
            hint="give a folder, or the URL of an object store: s3://, gs://, az://, ...",
        )
    with as_store_error(where, FileExistsError):
        yield


def _put(remote: Remote, name: str, source: Path | bytes, mode: str) -> None:
    filesystem, place = remote.filesystem, remote.place_of(name)
    if isinstance(source, bytes):
        filesystem.pipe_file(place, source, mode=mode)
    else:
        filesystem.put_file(str(source), place, mode=mode)


def _read_back(remote: Remote, name: str) -> bytes | None:
    remote.filesystem.invalidate_cache()
    try:
        data: bytes = remote.filesystem.cat_file(remote.place_of(name))
    except FileNotFoundError:
        return None
    return data


def _stamp(info: dict[str, object]) -> str:
    names = ("ETag", "etag", "generation", "LastModified", "last_modified", "mtime", "created")
    return next((str(info[name]) for name in names if info.get(name)), "")
