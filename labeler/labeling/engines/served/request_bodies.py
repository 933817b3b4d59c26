"""Bodies of requests to a server of the completions API."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from schemas import Sampling

NEUTRAL = {"repetition_penalty": 1.0, "top_k": 0}
"""Set explicitly: a vLLM server takes missing settings from the model's generation_config.json."""


@dataclass(frozen=True, kw_only=True)
class RequestBodies:
    """Builds requests for one server and teacher.

    Attributes:
        by_id: whether it is a vLLM server, which names ids and has more settings.
        top: logprobs to request per position.
        padding: ids of the output projection that are no tokens.
        stop_ids: ids that end a generation.
    """

    by_id: bool
    top: int
    padding: Iterable[int]
    stop_ids: tuple[int, ...]

    def score(self, ids: list[int]) -> dict[str, Any]:
        """Return a request to score a prompt; a server must generate one token for that."""
        body = {"prompt": ids, "max_tokens": 1, "temperature": 0.0}
        if self.by_id:
            return body | {"prompt_logprobs": self.top, "return_token_ids": True}
        return body | {"echo": True, "logprobs": self.top}

    def generate(self, ids: list[int], sampling: Sampling, seed: int) -> dict[str, Any]:
        """Return a request to generate after a prompt."""
        body = {
            "prompt": ids,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
            "logprobs": self.top,
            "stop": list(sampling.stop) or None,
        }
        if not self.by_id:
            return body
        return body | {
            **NEUTRAL,
            "min_p": sampling.min_p or 0.0,
            "stop_token_ids": list(self.stop_ids),
            # Padding is no token: never sampled. Raw logprobs do not see this.
            "logit_bias": {str(i): -100.0 for i in self.padding} or None,
            "structured_outputs": sampling.structured,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
