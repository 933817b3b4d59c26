"""Decides at start-up whether labels leave vLLM as tensors.

A fixed probe is labeled through the public interface, then as tensors. Only if the two agree up to
the rounding of a sum are tensors used: `tensor_capture` and `worker` rely on vLLM's internals.
"""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from labeler.labeling.engines.capture import TAIL_FLOOR, CaptureError, without_asked
from labeler.labeling.engines.engine import EngineOutOfMemory, Failed, Labeled, Request
from labeler.labeling.engines.fit_states import OutputHead
from labeler.labeling.engines.vllm.state_tap import export_head
from labeler.labeling.engines.vllm.tensor_capture import tensor_front_end
from labeler.labeling.engines.vllm.vllm_outputs import OutputReader, PublicReader, TensorReader
from labeler.labeling.engines.vllm.vllm_requests import RequestRunner
from labeler.labeling.rendering.spans import Span
from schemas import PAD_ID, Labels, Sampling
from schemas.draws import misfits
from schemas.errors import first_line
from schemas.file_names import FINAL

PROMPT_TOKENS = 24
GENERATED_TOKENS = 8
"""Tokens of the probe, where the model's context has room for them."""
LOGPROB_TOLERANCE = 2e-4
"""Largest difference of a log-probability, the same for a whole row: the rounding of the sum in
vLLM's float32 log-softmax. It was 2e-5 at 49,152 ids, and grows with their number."""
STATE_TOLERANCE = 1e-3
"""Largest difference of a log-probability that a head gives for a stored state, beside rounding."""
TIE = 1e-5
"""Logprobs of one row that are this close may be in either order."""
TAIL_TOLERANCE = 1e-4
"""Largest difference of the exact tail's mass from 1 - sum, from rounding of float32 sums."""
DRAW_SLACK = 1e-3
"""Relative error of the probabilities that drawn counts are compared with."""


def enable_tensors(
    runner: RequestRunner,
    public: PublicReader,
    tensors: TensorReader,
    undo: contextlib.ExitStack,
    *,
    vocab_size: int,
    draws: int,
) -> str | None:
    """Install the tensor path, and check it against the public interface.

    With hidden states, the head that a label set would keep must give the same labels.

    Args:
        runner: a loaded vLLM.
        public: reads the public interface; tensors: reads tensors. Both keep the same k.
        undo: receives the calls that put vLLM's own methods back.
        vocab_size: number of real ids.
        draws: ids drawn per position.

    Returns:
        None if the labels agree. Otherwise the reason why tensors cannot be used; the engine must
        then be closed.

    Raises:
        EngineOutOfMemory: memory ran out, on either path.
    """
    asks = tensors.asked > 0
    expected = _label_probe(runner, public, vocab_size, asks=asks)
    call_workers = runner.llm.collective_rpc
    try:
        undo.callback(call_workers, "softshards_uninstall")
        beside = tensors.states, tensors.asked, tensors.temperatures
        settings = (tensors.top, vocab_size, draws, *beside)
        if not any(call_workers("softshards_install", args=settings)):
            raise AttributeError("no worker has a sampler")
        undo.enter_context(tensor_front_end())
        found = _label_probe(runner, tensors, vocab_size, asks=asks)
        reason = difference(expected, found, draws)
        if reason is None and asks:
            reason = asked_difference(found[0], tensors.top)
        if reason is None and FINAL in tensors.states:
            head = export_head(call_workers("softshards_head"))
            reason = state_difference(found, tensors.states.index(FINAL), head)
        return reason
    except EngineOutOfMemory:
        raise
    except Exception as error:  # another vLLM, built otherwise, may fail in any way
        return f"the self-test failed: {first_line(error)}"


def _label_probe(
    runner: RequestRunner, reader: OutputReader, vocab_size: int, *, asks: bool
) -> list[Labels]:
    """Return labels of one fixed sequence, scored, and of the tokens generated after it.

    If it `asks`, the actual tokens are the ids to label beside the top-k.
    """
    room = runner.llm.llm_engine.model_config.max_model_len
    length = max(2, min(PROMPT_TOKENS, room - GENERATED_TOKENS))
    tokens: list[int] = np.random.default_rng(0).integers(0, vocab_size, length).tolist()
    request = Request(
        index=0,
        sample=0,
        input_ids=tokens,
        spans=(Span(start=1, stop=length, kind="text"),),
        seed=0,
        asked=[[token] for token in tokens[1:]] if asks else None,
    )
    sampling = Sampling(max_tokens=max(1, min(GENERATED_TOKENS, room - length)))
    outcomes = [*runner.run([request], None, reader), *runner.run([request], sampling, reader)]
    for outcome in outcomes:
        if isinstance(outcome, Failed):
            raise CaptureError(outcome.reason)
    return [outcome.labels for outcome in outcomes if isinstance(outcome, Labeled)]


def difference(public: list[Labels], tensors: list[Labels], draws: int = 0) -> str | None:
    """Describe the first difference of tensor labels from the public ones; None if they agree.

    The public ones have no exact tail, so it is compared within the accuracy of 1 - sum.
    """
    for given, theirs in zip(tensors, public, strict=True):
        ours = without_asked(given, theirs.topk_ids.shape[1])
        if not _equal(ours.topk_logprobs, theirs.topk_logprobs):
            return "top-k logprobs differ from the public interface's"
        if not _equal(ours.token_logprob, theirs.token_logprob):
            return "logprobs of the actual tokens differ from the public interface's"
        ties = np.zeros(ours.topk_ids.shape, bool)  # ids of equal logprobs may come in any order
        for logprobs in (ours.topk_logprobs, theirs.topk_logprobs):
            same = logprobs[:, 1:] >= logprobs[:, :-1] - TIE
            ties[:, 1:] |= same
            ties[:, :-1] |= same
        ties[:, -1] = True  # perhaps equal to the first one left out
        if ((ours.topk_ids != theirs.topk_ids) & ~ties).any():
            return "top-k ids differ from the public interface's"
        masses = np.exp(ours.tail_logprob) - np.exp(theirs.tail_logprob)
        if not (np.abs(masses) <= TAIL_TOLERANCE + TAIL_FLOOR).all():
            return "the exact tail does not fit the top-k"
        if ours.entropy is None or not (ours.entropy >= -1e-5).all():
            return "entropies are missing or negative"
        if draws and misfits(ours, draws, DRAW_SLACK).any():
            return "the drawn ids do not fit the top-k"
    return None


def asked_difference(labels: Labels, k: int) -> str | None:
    """Describe how labels of asked ids differ from the actual tokens', which were asked for.

    A token that is not among the top k comes right after them.
    """
    if labels.topk_ids.shape[1] <= k:
        return "the ids that were asked for are missing"
    beside = labels.topk_ids[:, k] != PAD_ID
    if not _equal(labels.topk_logprobs[beside, k], labels.token_logprob[beside]):
        return "the ids that were asked for have other logprobs than the actual tokens"
    return None


def state_difference(labels: list[Labels], layer: int, head: OutputHead) -> str | None:
    """Describe how a head's distributions on stored states differ from labels; None if they agree.

    Args:
        labels: with states.
        layer: the place of the states that the head reads.
        head: as it was exported.
    """
    wide = dataclasses.replace(head, weight=head.weight.float())
    for each in labels:
        assert each.states is not None
        logits = wide.logits(torch.from_numpy(np.ascontiguousarray(each.states[:, layer])))
        logprobs = logits.log_softmax(1).gather(1, torch.from_numpy(each.topk_ids).long()).numpy()
        # What a product in the head's dtype is rounded to.
        slack = STATE_TOLERANCE + 2 * torch.finfo(head.weight.dtype).eps * float(logits.abs().max())
        if not np.allclose(logprobs, each.topk_logprobs, rtol=0, atol=slack):
            return "the head's distributions on the stored hidden states differ from the labels"
    return None


def _equal(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> bool:
    """Return whether log-probabilities are the same up to rounding; -inf equals -inf."""
    return bool(np.allclose(ours, theirs, rtol=1e-6, atol=LOGPROB_TOLERANCE))
