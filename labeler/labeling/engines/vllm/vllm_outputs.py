"""vLLM's outputs to labels: from tensors kept by `tensor_capture`, or from its public interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from labeler.labeling.engines.capture import (
    DERIVED_TAIL,
    EXACT_TAIL,
    CaptureError,
    flat_rows,
    labels_from_rows,
    labels_from_tensors,
    with_states,
)
from labeler.labeling.engines.vllm.tensor_capture import TensorRows
from schemas import Labels


class Completion(Protocol):
    """The fields of vLLM's `CompletionOutput` that are read here."""

    token_ids: Sequence[int]
    logprobs: Any
    finish_reason: str | None


class Output(Protocol):
    """The fields of vLLM's `RequestOutput` that are read here."""

    request_id: str
    finished: bool
    prompt_logprobs: Any
    outputs: Sequence[Completion]


class OutputReader(Protocol):
    """One way to take labels out of vLLM.

    Attributes:
        top: logprobs per position to request from vLLM.
        tail_source, entropy_source: how these columns are computed.
    """

    top: int
    tail_source: str
    entropy_source: str

    def prompt_labels(
        self, output: Output, tokens: NDArray[np.int32], where: NDArray[np.int64]
    ) -> Labels:
        """Return the labels of a prompt `tokens` at its positions `where`.

        Raises:
            CaptureError: the output does not fit the prompt.
        """
        ...

    def generation_labels(self, completion: Completion, tokens: NDArray[np.int32]) -> Labels:
        """Return the labels of the generated `tokens`.

        Raises:
            CaptureError: the output does not fit the tokens.
        """
        ...


class TensorReader:
    """Reads tensors that the workers filled with the labels of the wanted positions only.

    Args:
        k: ids to keep per position.
        vocab_size: number of real token ids.
        states: the hidden states that come along, by name.
        asked: ids per position that a request may name.
        temperatures: at which there are further tails.
    """

    tail_source = EXACT_TAIL
    entropy_source = "full distribution"

    def __init__(
        self,
        *,
        k: int,
        vocab_size: int,
        states: Sequence[str] = (),
        asked: int = 0,
        temperatures: Sequence[float] = (),
    ) -> None:
        self.top, self._vocab_size, self.states = k, vocab_size, tuple(states)
        self.asked, self.temperatures = asked, tuple(temperatures)

    def prompt_labels(
        self, output: Output, tokens: NDArray[np.int32], where: NDArray[np.int64]
    ) -> Labels:
        """See `OutputReader`."""
        return self._labels(output.prompt_logprobs, tokens[where])

    def generation_labels(self, completion: Completion, tokens: NDArray[np.int32]) -> Labels:
        """See `OutputReader`."""
        return self._labels(completion.logprobs, tokens)

    def _labels(self, rows: TensorRows, tokens: NDArray[np.int32]) -> Labels:
        ids, values, states = rows.joined()
        width = self.top + self.asked
        labels = labels_from_tensors(ids, values, tokens, k=width, vocab_size=self._vocab_size)
        return with_states(labels, states, len(self.states)) if self.states else labels


class PublicReader:
    """Reads vLLM's flat logprobs of every position.

    Args:
        k: ids to keep per position.
        vocab_size: number of real token ids.
        top: logprobs per position to request: more than k where padding ids of the head, which are
            dropped, may be among the top.
    """

    tail_source = DERIVED_TAIL
    entropy_source = "top-k and tail"

    def __init__(self, *, k: int, vocab_size: int, top: int) -> None:
        self.top = top
        self._k, self._vocab_size = k, vocab_size

    def prompt_labels(
        self, output: Output, tokens: NDArray[np.int32], where: NDArray[np.int64]
    ) -> Labels:
        """See `OutputReader`."""
        if output.prompt_logprobs is None or len(output.prompt_logprobs) != len(tokens):
            count = 0 if output.prompt_logprobs is None else len(output.prompt_logprobs)
            raise CaptureError(f"the engine returned {count} positions, expected {len(tokens)}")
        ids, logprobs = flat_rows(output.prompt_logprobs, skip=1)
        return self._labels(ids[where - 1], logprobs[where - 1], tokens[where])

    def generation_labels(self, completion: Completion, tokens: NDArray[np.int32]) -> Labels:
        """See `OutputReader`."""
        return self._labels(*flat_rows(completion.logprobs), tokens)

    def _labels(
        self, ids: NDArray[np.int32], logprobs: NDArray[np.float32], tokens: NDArray[np.int32]
    ) -> Labels:
        return labels_from_rows(ids, logprobs, tokens, k=self._k, vocab_size=self._vocab_size)
