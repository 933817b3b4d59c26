"""Errors that are written for the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.printable import one_line
from schemas.redact import redacted


class SoftshardsError(Exception):
    """An error that the user can act on.

    Args:
        what: what is wrong, in one sentence.
        path: the file concerned, if any.
        row: the record or row concerned, if any (`notes.jsonl:17`, `article/3`).
        hint: what to do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        path: Path | str | None = None,
        row: str | int | None = None,
        hint: str | None = None,
    ) -> None:
        what = redacted(what)
        if path is not None and (shown := redacted(str(path))) != str(path):
            path = shown
        hint = redacted(hint) if hint else hint
        self.what, self.path, self.row, self.hint = what, path, row, hint
        where = [
            one_line(str(part)) for part in (path, None if row is None else f"row {row}") if part
        ]
        message = f"{', '.join(where)}: {what}" if where else what
        super().__init__(f"{message}\n  hint: {hint}" if hint else message)


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its repr where it has none, redacted."""
    lines = str(error).strip().splitlines()
    return redacted(lines[0] if lines else repr(error))


def is_failure(error: BaseException) -> bool:
    """Return True for an Exception, and for a panic of a library in Rust, which is none."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


class LabelSetError(SoftshardsError):
    """A label set is missing, damaged, unfinished, or not the one expected."""


class IdentityError(LabelSetError):
    """Two label sets or runs that must share teacher, tokenizer and settings do not."""


@contextmanager
def naming(folder: Path, place: str) -> Iterator[None]:
    """Name a place in errors instead of the folder that stands in for it on this machine."""
    try:
        yield
    except SoftshardsError as error:
        if str(folder) not in f"{error.path} {error.what} {error.hint}":
            raise
        what, path, hint = (
            None if text is None else str(text).replace(str(folder), place)
            for text in (error.what, error.path, error.hint)
        )
        raise type(error)(str(what), path=path, row=error.row, hint=hint) from error


def missing_driver(error: ImportError, where: str) -> SoftshardsError:
    """Return the error for a URL whose driver, a package of fsspec's, is not installed."""
    package = getattr(error.__cause__ or error, "name", None)
    hint = f"pip install {package}" if package else "install the package that it names"
    return SoftshardsError(f"no driver for this URL: {error}", path=where, hint=hint)
