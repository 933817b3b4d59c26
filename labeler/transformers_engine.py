"""The reference engine: plain transformers, one sequence at a time, every quantity exact.

Slow on purpose: it is what the fast engine is checked against, and it runs where vLLM does not.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from labeler.capture import CaptureError, drop_padding, positions
from labeler.engine import EngineFacts, Failed, Labeled, Request
from labeler.rendering import Span
from labeler.teacher import Teacher
from schemas import Labels, Sampling, SoftshardsError
from schemas.errors import first_line

EXACT_TAIL = "log-sum-exp over the other ids in float32"


class TransformersEngine:
    """A teacher in transformers, on the GPU where there is one.

    Raises:
        SoftshardsError: transformers cannot load the teacher.
    """

    def __init__(
        self,
        teacher: Teacher,
        *,
        dtype: str,
        head_dtype: str,
        k: int,
        sampling: Sampling | None,
    ) -> None:
        self._teacher, self._k, self._sampling = teacher, k, sampling
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        transformers.utils.logging.disable_progress_bar()
        try:
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                teacher.path, dtype=getattr(torch, dtype)
            )
        except Exception as error:  # weights, settings, memory: each raises what it likes
            raise SoftshardsError(
                f"the model cannot be loaded: {first_line(error)}", path=teacher.path
            ) from error
        if head_dtype != dtype:
            _widen_head(model, getattr(torch, head_dtype))
        self._model: Any = model.eval()
        self._model.to(self._device)
        heads = self._model.get_output_embeddings().weight.shape[0]
        self._padding = list(range(teacher.vocab_size, heads))
        self.facts = EngineFacts(
            name="transformers",
            version=transformers.__version__,
            device=self._device,
            dtype=dtype,
            head_dtype=head_dtype,
            tail_source=EXACT_TAIL,
            entropy_source="full distribution",
            settings={},
        )

    @torch.inference_mode()
    def run(self, requests: Sequence[Request]) -> Iterator[Labeled | Failed]:
        """Label `requests` in order; see `engine.Engine`."""
        for request in requests:
            try:
                if self._sampling is None:
                    yield self._label(request, request.input_ids, request.spans, None)
                else:
                    yield self._generate(request, self._sampling)
            except CaptureError as error:
                yield Failed(request=request, reason=str(error))

    def _generate(self, request: Request, sampling: Sampling) -> Labeled:
        torch.manual_seed(request.seed)
        sampled = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        ids = torch.tensor([request.input_ids], device=self._device)
        output = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=sampling.max_tokens,
            do_sample=sampling.temperature > 0,
            eos_token_id=list(self._teacher.stop_ids) or None,
            pad_token_id=0,
            suppress_tokens=self._padding or None,  # padding ids of the head are no tokens
            stop_strings=list(sampling.stop) or None,
            tokenizer=self._teacher.tokenizer if sampling.stop else None,
            **(sampled if sampling.temperature > 0 else {}),
        )
        whole = output[0].tolist()
        start = len(request.input_ids)
        if len(whole) == start:
            raise CaptureError("nothing was generated")
        complete = whole[-1] in self._teacher.stop_ids or len(whole) - start < sampling.max_tokens
        span = Span(start=start, stop=len(whole), kind="answer")
        return self._label(request, whole, (span,), "stop" if complete else "length")

    def _label(
        self, request: Request, ids: list[int], spans: tuple[Span, ...], reason: str | None
    ) -> Labeled:
        where = torch.from_numpy(positions(spans)).to(self._device)
        tokens = torch.tensor(ids, device=self._device)
        # The distribution of the token at t is the output at t - 1.
        logits = self._model(tokens[None], logits_to_keep=where - 1).logits[0].float()
        labels = exact_labels(logits, tokens[where], k=self._k, vocab_size=self._teacher.vocab_size)
        return Labeled(
            request=request, input_ids=ids, spans=spans, labels=labels, finish_reason=reason
        )

    def close(self) -> None:
        """Free the model's memory."""
        del self._model


def _widen_head(model: Any, dtype: torch.dtype) -> None:
    """Give the model an output projection of its own in `dtype`, as vLLM's `head_dtype` does."""
    head = copy.deepcopy(model.get_output_embeddings()).to(dtype)
    head.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype),))
    model.set_output_embeddings(head)


def exact_labels(logits: torch.Tensor, tokens: torch.Tensor, *, k: int, vocab_size: int) -> Labels:
    """Labels from full logits: top-k of the real ids, exact tail, entropy and normaliser.

    Args:
        logits: float32 [n, V], of the positions that the labels are of.
        tokens: int64 [n], the actual tokens.
        k: ids to keep; vocab_size: number of real ids, V or less.

    Raises:
        CaptureError: a logit is NaN.
    """
    if torch.isnan(logits).any():
        raise CaptureError("the model returned NaN logits")
    normalizer = torch.logsumexp(logits, dim=-1)
    logprobs = logits - normalizer[:, None]
    top, ids = logprobs[:, :vocab_size].topk(k, dim=-1)
    entropy = -(logprobs.exp() * logprobs.clamp_min(-1e4)).sum(dim=-1)
    token = logprobs.gather(1, tokens[:, None])[:, 0]
    tail = logprobs.scatter(1, ids, -torch.inf).logsumexp(dim=-1)
    top_ids, top_logprobs = drop_padding(
        ids.int().cpu().numpy(), top.cpu().numpy(), k=k, vocab_size=vocab_size
    )
    return Labels(
        topk_ids=top_ids,
        topk_logprobs=top_logprobs,
        tail_logprob=_numpy(tail),
        token_logprob=_numpy(token),
        entropy=_numpy(entropy),
        log_normalizer=_numpy(normalizer),
    )


def _numpy(values: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    return values.float().cpu().numpy()
