"""The client of a completions server: its model, and errors with a hint."""

from __future__ import annotations

import os
from typing import Any

from labeler.labeling.label_settings import ServerSettings
from labeler.labeling.teacher.teacher_identity import Weights
from schemas import SoftshardsError
from schemas.errors import first_line
from schemas.fingerprint import sha256_json

try:
    import openai
except ImportError as error:
    raise SoftshardsError(
        "--engine served needs the package openai, which is not installed",
        hint="install the extra `served` of softshards",
    ) from error

TIMEOUT_SECONDS = 1800.0
"""Timeout of one answer: a long generation in a full queue is faster, unless the server hangs."""
MOST_BY_TEXT = 20
"""Most logprobs per position that OpenAI-style servers return."""
STABLE = ("id", "root", "parent", "owned_by", "max_model_len")
"""Fields of a server's model card that stay the same when the server restarts."""


def client_arguments(settings: ServerSettings) -> dict[str, Any]:
    """Return arguments of `openai.OpenAI` and `openai.AsyncOpenAI`: URL, key, retries, timeout."""
    return {
        "base_url": settings.server_url,
        "api_key": os.environ.get("OPENAI_API_KEY") or "none",
        "max_retries": settings.retries,
        "timeout": openai.Timeout(TIMEOUT_SECONDS, connect=10.0),
    }


def model_card(settings: ServerSettings) -> dict[str, Any]:
    """Return the model card of the model to use, reduced to its stable fields.

    Raises:
        SoftshardsError: no server answers at --server-url, it lacks the model, or it has several
            and --served-model is not set.
    """
    try:
        with openai.OpenAI(**client_arguments(settings)) as client:
            answer: Any = client.get("/models", cast_to=object)
        cards = {card["id"]: card for card in answer["data"]}
    except openai.OpenAIError as error:
        raise as_server_error(error, settings.server_url) from error
    except (KeyError, TypeError) as error:
        raise SoftshardsError(
            "this is not a server of the completions API: it lists no models",
            path=settings.server_url,
            hint="check --server-url, which usually ends in /v1: http://127.0.0.1:8000/v1",
        ) from error
    name = settings.served_model or (next(iter(cards)) if len(cards) == 1 else None)
    if name not in cards:
        raise SoftshardsError(
            f"the server has no model {name!r}" if name else f"the server has {len(cards)} models",
            path=settings.server_url,
            hint=f"pass --served-model with one of: {', '.join(cards) or '(it has none)'}",
        )
    return {field: cards[name].get(field) for field in STABLE}


def served_weights(settings: ServerSettings) -> Weights:
    """Return the served model's weights; its model card stands for them.

    Raises:
        SoftshardsError: as `model_card`.
    """
    return Weights(
        digest=sha256_json(model_card(settings)),
        scope="served",
        max_logprobs=MOST_BY_TEXT if settings.server_api == "openai" else None,
    )


def error_message(error: openai.OpenAIError) -> str:
    """Return the server's own message, or else the client's."""
    body = getattr(error, "body", None)
    if isinstance(body, dict) and body.get("message"):
        return first_line(Exception(body["message"]))
    cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else None
    return first_line(error) + (f" ({first_line(cause)})" if cause else "")


def as_server_error(
    error: openai.OpenAIError, url: str | None, *, top: int | None = None
) -> SoftshardsError:
    """Return an error of the client as one that a user can act on.

    Args:
        error: the client's error.
        url: the server's.
        top: logprobs requested per position, if any.
    """
    what = f"the server refuses: {error_message(error)}"
    if isinstance(error, openai.APIConnectionError):
        what = f"the server does not answer: {error_message(error)}"
        hint = "start it (`vllm serve TEACHER --max-logprobs -1`), or correct --server-url"
    elif isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        hint = "set the environment variable OPENAI_API_KEY to the server's key"
    elif isinstance(error, openai.NotFoundError):
        hint = "check --served-model, and that --server-url ends like the server's (/v1)"
    elif too_many_logprobs(error) and top is not None:
        hint = f"start the server with --max-logprobs {top} (or -1), or lower --k"
    elif isinstance(error, openai.RateLimitError):
        hint = "lower --concurrency, or raise --retries"
    else:
        hint = "read the server's log"
    return SoftshardsError(what, path=url, hint=hint)


def too_many_logprobs(error: openai.OpenAIError) -> bool:
    """Return whether the server refuses the number of logprobs: no request would pass."""
    return isinstance(error, openai.BadRequestError) and "logprobs" in error_message(error)
