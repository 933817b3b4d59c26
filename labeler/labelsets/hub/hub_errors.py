"""Errors of the Hub as errors that the user can act on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from schemas import SoftshardsError
from schemas.errors import first_line

LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write there"


@contextlib.contextmanager
def hub_errors(url: str) -> Iterator[None]:
    """Within, the library talks to the Hub about the repository at `url`.

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
            "the Hub's library is set to be offline", path=url, hint="unset HF_HUB_OFFLINE"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SoftshardsError("no such revision", path=url, hint="check --revision") from error
    except errors.RepositoryNotFoundError as error:
        raise SoftshardsError(
            "no such dataset, or none that you may see", path=url, hint=f"check the name; {LOGIN}"
        ) from error
    except (errors.HTTPError, OSError, ValueError, RuntimeError) as error:
        cause = error.__cause__ if type(error) is RuntimeError else error
        status = getattr(getattr(cause, "response", None), "status_code", None)
        hint = "run the same command: it goes on from there"
        if status in (401, 403):
            hint = LOGIN
        elif isinstance(error, ValueError):
            hint = "see what the Hub says; a card it refuses has a wrong --license"
        raise SoftshardsError(_sentence(cause or error), path=url, hint=hint) from error


def _sentence(error: BaseException) -> str:
    """What the server said, else what the library says."""
    said = getattr(error, "server_message", None)
    if isinstance(error, ValueError) and not said:
        return " ".join(str(error).split())
    return str(said) if said else f"{type(error).__name__}: {first_line(error)}"
