"""A server of the completions API: finding its model, and errors that say what to do."""

from __future__ import annotations

import os
from typing import Any

from labeler.labeling.label_config import LabelConfig
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
"""For one answer: a long generation in a full queue takes no longer, unless the server hangs."""
MOST_BY_TEXT = 20
"""Logprobs a position that OpenAI-style servers give at most."""
STABLE = ("id", "root", "parent", "owned_by", "max_model_len")
"""What a server says of its model that stays the same when it is started again."""


def client_arguments(config: LabelConfig) -> dict[str, Any]:
    """Arguments of `openai.OpenAI` and `openai.AsyncOpenAI`: address, key, retries, patience."""
    return {
        "base_url": config.server_url,
        "api_key": os.environ.get("OPENAI_API_KEY") or "none",
        "max_retries": config.retries,
        "timeout": openai.Timeout(TIMEOUT_SECONDS, connect=10.0),
    }


def model_card(config: LabelConfig) -> dict[str, Any]:
    """What the server says of the model to use, without what differs from call to call.

    Raises:
        SoftshardsError: nobody answers at --server-url, the server has no such model, or it has
            several and --served-model does not say which.
    """
    try:
        with openai.OpenAI(**client_arguments(config)) as client:
            answer: Any = client.get("/models", cast_to=object)
        cards = {card["id"]: card for card in answer["data"]}
    except openai.OpenAIError as error:
        raise explained(error, config) from error
    except (KeyError, TypeError) as error:
        raise SoftshardsError(
            "this is no server of the completions API: it lists no models",
            path=config.server_url,
            hint="the URL ends in /v1 as a rule: http://127.0.0.1:8000/v1",
        ) from error
    name = config.served_model or (next(iter(cards)) if len(cards) == 1 else None)
    if name not in cards:
        raise SoftshardsError(
            f"the server has no model {name!r}" if name else "the server has not one model",
            path=config.server_url,
            hint=f"pass --served-model with one of: {', '.join(cards) or '(it has none)'}",
        )
    return {field: cards[name].get(field) for field in STABLE}


def served_weights(config: LabelConfig) -> Weights:
    """Return the served model's weights; its model card stands for them.

    Raises:
        SoftshardsError: as `model_card`.
    """
    return Weights(
        digest=sha256_json(model_card(config)),
        scope="served",
        max_logprobs=MOST_BY_TEXT if config.server_api == "openai" else None,
    )


def message_of(error: openai.OpenAIError) -> str:
    """What went wrong, in the server's own words where it has any."""
    body = getattr(error, "body", None)
    if isinstance(body, dict) and body.get("message"):
        return first_line(Exception(body["message"]))
    cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else None
    return first_line(error) + (f" ({first_line(cause)})" if cause else "")


def explained(
    error: openai.OpenAIError, config: LabelConfig, *, asked: int | None = None
) -> SoftshardsError:
    """An error of the client as one that a user can act on.

    Args:
        error: what the client raised.
        config: the settings.
        asked: logprobs asked a position, where they were.
    """
    what = f"the server refuses: {message_of(error)}"
    if isinstance(error, openai.APIConnectionError):
        what = f"the server does not answer: {message_of(error)}"
        hint = "start it (`vllm serve TEACHER --max-logprobs -1`), or correct --server-url"
    elif isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        hint = "put the server's key into the environment variable OPENAI_API_KEY"
    elif isinstance(error, openai.NotFoundError):
        hint = "check that --server-url ends as the server's does (/v1), and --served-model"
    elif too_many_logprobs(error) and asked is not None:
        hint = f"start the server with --max-logprobs {asked} (or -1), or lower --k"
    elif isinstance(error, openai.RateLimitError):
        hint = "lower --concurrency, or raise --retries"
    else:
        hint = "look at the server's log"
    return SoftshardsError(what, path=config.server_url, hint=hint)


def too_many_logprobs(error: openai.OpenAIError) -> bool:
    """Whether the server refuses the number of logprobs: no request would pass."""
    return isinstance(error, openai.BadRequestError) and "logprobs" in message_of(error)
