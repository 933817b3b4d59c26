"""Errors of the Hub as errors that the user can act on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from schemas.errors import SoftshardsError, first_line

LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token with write access"


@contextlib.contextmanager
def hub_errors(url: str) -> Iterator[None]:
    """Translate the library's errors about the repository at `url`, while the context lasts.

    Raises:
        SoftshardsError: the Hub refuses, cannot be reached, or the connection breaks.
    """
    from huggingface_hub import errors

    try:
        yield
    except SoftshardsError:
        raise
    except errors.OfflineModeIsEnabled as error:
        raise SoftshardsError(
            "the Hub's library is in offline mode", path=url, hint="unset HF_HUB_OFFLINE"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SoftshardsError("no such revision", path=url, hint="check --revision") from error
    except errors.RepositoryNotFoundError as error:
        raise SoftshardsError(
            "no such dataset, or you have no access to it",
            path=url,
            hint=f"check the name; {LOGIN}",
        ) from error
    except (
        errors.HTTPError,  # type: ignore[attr-defined]
        OSError,
        ValueError,
        RuntimeError,
    ) as error:
        cause = error.__cause__ if type(error) is RuntimeError else error
        status = getattr(getattr(cause, "response", None), "status_code", None)
        hint = "run the same command again: it resumes"
        if status in (401, 403):
            hint = LOGIN
        elif isinstance(error, ValueError):
            hint = "see the Hub's message; it refuses a card with an unknown --license"
        raise SoftshardsError(_sentence(cause or error), path=url, hint=hint) from error

    except Exception as error:  # of the library, over an answer without what it looks for
        raise SoftshardsError(
            f"the Hub's answer cannot be read: {type(error).__name__}: {first_line(error)}",
            path=url,
            hint="check --endpoint, and run the same command again",
        ) from error


def _sentence(error: BaseException) -> str:
    """Return the server's message, or the library's if the server sent none."""
    message = getattr(error, "server_message", None)
    if isinstance(error, ValueError) and not message:
        return " ".join(str(error).split())
    return str(message) if message else f"{type(error).__name__}: {first_line(error)}"
