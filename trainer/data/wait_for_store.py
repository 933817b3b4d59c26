"""Wait for an object store that does not answer for a while, instead of ending a run."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import TypeVar

from schemas import LabelSetError
from schemas.remote import MISSING_CREDENTIALS, PERMANENT_ERRORS

T = TypeVar("T")
LONGEST_WAIT = 300.0
"""Seconds: shorter than the ten minutes after which the other ranks give this one up."""
PAUSE = 5.0
"""Seconds between two tries, each of which is several requests."""


def wait_for_store(read: Callable[[], T], *, longest: float = LONGEST_WAIT) -> T:
    """Return what `read` returns, and call it again while the store does not answer.

    Args:
        read: reads from a label set behind a URL.
        longest: seconds after which the error is raised.

    Raises:
        LabelSetError: the store still does not answer, or waiting does not help.
    """
    until = time.monotonic() + longest
    is_first = True
    while True:
        try:
            return read()
        except LabelSetError as error:
            if not may_pass(error.__cause__) or time.monotonic() >= until:
                raise
            if is_first:
                warnings.warn(
                    f"{error.path}: the store does not answer; waiting for it, "
                    f"{longest:.0f} s at most",
                    stacklevel=2,
                )
            is_first = False
            time.sleep(min(PAUSE, max(0.0, until - time.monotonic())))


def may_pass(cause: BaseException | None) -> bool:
    """Return whether an error of a filesystem may be gone later; damage to a file never is."""
    return (
        isinstance(cause, Exception)
        and not isinstance(cause, PERMANENT_ERRORS)
        and type(cause).__name__ not in MISSING_CREDENTIALS
        and not type(cause).__module__.startswith("pyarrow")
    )
