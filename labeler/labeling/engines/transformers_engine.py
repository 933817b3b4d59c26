"""The reference engine: plain transformers, one sequence at a time, every quantity exact.

Slow on purpose: the fast engines are checked against it, and it runs where vLLM does not.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from labeler.labeling.engines.capture import CaptureError, pad_asked, positions, with_states
from labeler.labeling.engines.decoder_layers import decoder_layers, inner_layers
from labeler.labeling.engines.engine import EngineFacts, Failed, Labeled, Request
from labeler.labeling.engines.fit_states import OutputHead
from labeler.labeling.engines.label_rows import draw, uniform
from labeler.labeling.rendering.spans import Span
from labeler.labeling.teacher.engine_limits import REFERENCE_CHUNK
from labeler.labeling.teacher.teacher import Teacher
from schemas import PAD_ID, Labels, Sampling, SoftshardsError
from schemas.draws import count_draws
from schemas.errors import first_line
from schemas.file_names import FINAL

PROBE = 8
"""Tokens of the call that shows what a model does to its logits."""
EXACT_TAIL = "log-sum-exp over the other ids in float32"


class TransformersEngine:
    """A teacher in transformers, on the GPU where there is one.

    Raises:
        SoftshardsError: transformers cannot load the teacher, or output must be constrained.
    """

    def __init__(
        self,
        teacher: Teacher,
        *,
        dtype: str,
        head_dtype: str,
        k: int,
        sampling: Sampling | None,
        draws: int = 0,
        asked: int = 0,
        temperatures: Sequence[float] = (),
        states: Sequence[str] = (),
    ) -> None:
        if sampling is not None and sampling.structured:
            raise SoftshardsError(
                "the transformers engine cannot constrain its output",
                hint="leave out --structured, or pass --engine vllm",
            )
        self._teacher, self._k, self._sampling, self._draws = teacher, k, sampling, draws
        self._asked, self._temperatures = asked, tuple(temperatures)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        transformers.utils.logging.disable_progress_bar()
        try:
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                teacher.path, dtype=getattr(torch, dtype), trust_remote_code=teacher.trust_code
            )
        except Exception as error:  # weights, settings, memory: each raises what it likes
            raise SoftshardsError(
                f"the model cannot be loaded: {first_line(error)}", path=teacher.path
            ) from error
        if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
            model.set_attn_implementation("eager")  # SDPA leaves out this cap, as of Gemma 2
        if head_dtype != dtype:
            _widen_head(model, getattr(torch, head_dtype))
        # Sample as requested, not as the checkpoint suggests (penalties, top-k).
        model.generation_config = transformers.GenerationConfig()
        self._model: Any = model.eval()
        self._model.to(self._device)
        self._states, self._dtype = tuple(states), getattr(torch, dtype)
        self._kept = _keep_states(self._model, states) if states else {}
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
        sampled = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
            "min_p": sampling.min_p,
        }
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
        vocab_size = self._teacher.vocab_size
        parts: list[Labels] = []
        drawn, states = [], []
        with _body_run_once(self._model):
            for chunk in torch.split(where, REFERENCE_CHUNK):
                # The distribution of the token at t is the output at t - 1.
                output = self._model(tokens[None], logits_to_keep=chunk - 1, use_cache=False)
                logits = output.logits[0].float()
                asked = _padded(request.asked, self._asked, len(parts) * REFERENCE_CHUNK, logits)
                parts.append(
                    exact_labels(
                        logits,
                        tokens[chunk],
                        k=self._k,
                        vocab_size=vocab_size,
                        asked=asked,
                        temperatures=self._temperatures,
                    )
                )
                if self._states:
                    states.append(_numpy(self._states_at(chunk - 1)))
                if self._draws:
                    u = uniform(logits.logsumexp(dim=-1), tokens[chunk])
                    p = logits[:, :vocab_size].softmax(dim=-1)
                    drawn.append(draw(p, u, self._draws).int().cpu().numpy())
                    del p
                del output, logits  # before the next chunk's are made
        labels = parts[0] if len(parts) == 1 else _joined(parts)
        if drawn:
            sample_ids, sample_counts = count_draws(np.concatenate(drawn))
            labels = dataclasses.replace(labels, sample_ids=sample_ids, sample_counts=sample_counts)
        if states:
            labels = with_states(labels, np.concatenate(states), len(self._states))
        return Labeled(
            request=request, input_ids=ids, spans=spans, labels=labels, finish_reason=reason
        )

    def _states_at(self, where: torch.Tensor) -> torch.Tensor:
        """Return states [n, names * d] of the tokens `where`, whose logits were computed last."""
        kept = {n: x if n == FINAL else x[where] for n, x in self._kept.items()}
        if len({states.shape[1] for states in kept.values()}) > 1:
            raise SoftshardsError(
                "what the head reads and what layers return differ in width",
                path=self._teacher.path,
                hint="store --states final alone, or layers without it",
            )
        return torch.cat([kept[name] for name in self._states], dim=1)

    @torch.inference_mode()
    def output_head(self) -> OutputHead:
        """Return the teacher's head; see `engine.Engine`.

        What the model does to logits after its head is taken from its outputs: a soft cap that its
        configuration names, or a factor.
        """
        module = self._model.get_output_embeddings()
        if not module.weight.is_floating_point():
            raise SoftshardsError("the teacher's head is quantized", path=self._teacher.path)
        seen: list[torch.Tensor] = []
        with module.register_forward_hook(lambda *call: seen.append(call[2])):
            ids = torch.arange(1, PROBE + 1, device=self._device) % self._teacher.vocab_size
            logits = self._model(ids[None], use_cache=False).logits[0].float()
        raw = seen[-1].reshape(logits.shape).double()
        cap = getattr(self._model.config.get_text_config(), "final_logit_softcapping", None)
        factor = float((raw * logits.double()).sum() / (raw * raw).sum()) if cap is None else 1.0
        bias = getattr(module, "bias", None)
        head = OutputHead(
            weight=module.weight.detach(),
            bias=None if bias is None else bias.detach(),
            scale=1.0 if abs(factor - 1) < 1e-6 else factor,
            softcap=cap,
        )
        slack = 1e-4 + 2 * torch.finfo(module.weight.dtype).eps * float(logits.abs().max())
        if not torch.allclose(head.logits(self._kept[FINAL]), logits, rtol=1e-4, atol=slack):
            raise SoftshardsError(
                "the teacher does more to its logits than a scale or a soft cap",
                path=self._teacher.path,
            )
        # A head that was widened holds the checkpoint's values.
        return dataclasses.replace(
            head,
            weight=head.weight.to(self._dtype).cpu(),
            bias=None if head.bias is None else head.bias.to(self._dtype).cpu(),
        )

    def close(self) -> None:
        """Free the model's memory."""
        del self._model
        self._kept.clear()


@contextlib.contextmanager
def _body_run_once(model: Any) -> Iterator[None]:
    """Within the context, run the layers below the head only once; later calls reuse their output.

    One call of the model per chunk of positions then gives the logits of that chunk alone, through
    everything the model does after its head (softcap, scaling).
    """
    body = model.base_model
    if any(module is model.get_output_embeddings() for module in body.modules()):
        yield  # a model built differently: slower, and as exact
        return
    run = body.forward
    outputs: list[Any] = []

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not outputs:
            outputs.append(run(*args, **kwargs))
        return outputs[0]

    body.forward = forward
    try:
        yield
    finally:
        del body.forward  # the class has its own


def _keep_states(model: Any, states: Sequence[str]) -> dict[str, torch.Tensor]:
    """Make a model keep what its head read and its layers returned last; return where.

    `final` is [n, d] of the positions whose logits were asked for, a layer [tokens, d].
    """
    kept: dict[str, torch.Tensor] = {}

    def keep_input(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        kept[FINAL] = inputs[0].flatten(0, -2)

    model.get_output_embeddings().register_forward_pre_hook(keep_input)
    inner = inner_layers(states)
    if inner:
        count = model.config.get_text_config().num_hidden_layers
        _, blocks = decoder_layers(model, count)
        for name, number in inner.items():

            def keep_output(_: Any, __: Any, output: Any, name: str = name) -> None:
                stream = output if isinstance(output, torch.Tensor) else output[0]
                kept[name] = stream.flatten(0, -2)

            blocks[number].register_forward_hook(keep_output)
    return kept


def _widen_head(model: Any, dtype: torch.dtype) -> None:
    """Give the model its own output projection in `dtype`, as vLLM's `head_dtype` does."""
    head = copy.deepcopy(model.get_output_embeddings()).to(dtype)
    head.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype),))
    model.set_output_embeddings(head)


def _padded(
    asked: list[list[int]] | None, width: int, first: int, logits: torch.Tensor
) -> torch.Tensor | None:
    """Return the ids asked for at the positions of logits, int64 [n, width], padded with -1."""
    if not width:
        return None
    lists = (asked or [])[first : first + len(logits)] or [[]] * len(logits)
    return torch.from_numpy(pad_asked(lists, width)).to(logits.device)


def exact_labels(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    *,
    k: int,
    vocab_size: int,
    asked: torch.Tensor | None = None,
    temperatures: Sequence[float] = (),
) -> Labels:
    """Return labels from full logits: top-k of the real ids, exact tail, entropy and normalizer.

    Needs three times the memory of the logits, including them.

    Args:
        logits: float32 [n, V], of the labeled positions.
        tokens: int64 [n], the actual tokens.
        k: ids to keep; vocab_size: number of real ids, V or less.
        asked: int64 [n, m], ids to keep beside them, padded with -1; or None.
        temperatures: further temperatures to return the tail at.

    Raises:
        CaptureError: a logit is NaN.
    """
    if torch.isnan(logits).any():
        raise CaptureError("the model returned NaN logits")
    normalizer = torch.logsumexp(logits, dim=-1)
    logprobs = logits - normalizer[:, None]
    top, ids = logprobs[:, :vocab_size].topk(k, dim=-1)
    token = logprobs.gather(1, tokens[:, None])[:, 0]
    if asked is not None:
        twice = (asked[:, :, None] == ids[:, None, :]).any(dim=2) | (asked < 0)
        more = logprobs.gather(1, asked.clamp_min(0)).masked_fill(twice, -torch.inf)
        # Padding after ids that cannot occur: they have a logprob of -inf, too.
        order = torch.argsort(more.masked_fill(~twice & more.isneginf(), -1e30), 1, descending=True)
        ids = torch.cat([ids, asked.masked_fill(twice, PAD_ID).gather(1, order)], dim=1)
        top = torch.cat([top, more.gather(1, order)], dim=1)
    kept = ids.where(ids >= 0, ids[:, :1])
    p = logprobs.exp()
    entropy = torch.special.entr(p, out=p).sum(dim=-1)
    del p
    tempered = [
        (logits / t).log_softmax(dim=-1).scatter_(1, kept, -torch.inf).logsumexp(dim=-1)
        for t in temperatures
    ]
    tail = logprobs.scatter_(1, kept, -torch.inf).logsumexp(dim=-1)
    return Labels(
        topk_ids=ids.int().cpu().numpy(),
        topk_logprobs=_numpy(top),
        tail_logprob=_numpy(tail),
        token_logprob=_numpy(token),
        entropy=_numpy(entropy),
        log_normalizer=_numpy(normalizer),
        tempered_tails=_numpy(torch.stack(tempered, 1)) if tempered else None,
    )


def _joined(parts: Sequence[Labels]) -> Labels:
    names = [f.name for f in dataclasses.fields(Labels) if getattr(parts[0], f.name) is not None]
    arrays: Any = {n: np.concatenate([getattr(part, n) for part in parts]) for n in names}
    return Labels(**arrays)


def _numpy(values: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    return values.float().cpu().numpy()
