"""One wording for the errors of object stores and web servers, of readers and writers alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from schemas.errors import LabelSetError, SoftshardsError, first_line, missing_driver

NO_ANSWER = (
    "check the network, the credentials and that the bucket exists, and run the same command "
    "again: it resumes"
)
NO_SET = (
    "give the URL of the folder with manifest.json, or of a view, and the options of its "
    "filesystem (docs/trainer.md)"
)


class StoreError(LabelSetError):
    """A URL cannot be read or written: no driver, no answer, no permission, no such object."""


@contextmanager
def as_store_error(url: str, *passing: type[Exception], hint: str = NO_ANSWER) -> Iterator[None]:
    """Raise errors of a filesystem as one that names the URL.

    Args:
        url: the object, or the folder.
        passing: errors that the caller handles.
        hint: what to do where the store does not answer, or has no such object.

    Raises:
        StoreError: the driver is missing, the URL is of no known kind, or the store fails.
    """
    try:
        yield
    except passing:
        raise
    except SoftshardsError:
        raise
    except ImportError as error:
        known = missing_driver(error, url)
        raise StoreError(known.what, path=url, hint=known.hint) from error
    except FileNotFoundError as error:
        raise StoreError("there is no such object or bucket", path=url, hint=hint) from error
    except ValueError as error:
        hint = "give a folder, or a URL such as s3://bucket/labels"
        raise StoreError(f"cannot be used: {first_line(error)}", path=url, hint=hint) from error
    except Exception as error:  # each filesystem has errors of its own
        what = f"the store fails: {type(error).__name__}: {first_line(error)}"
        raise StoreError(what, path=url, hint=hint) from error
