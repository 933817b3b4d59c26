"""Requests through vLLM, step by step: each output is taken as soon as it is finished."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from labeler.labeling.engines.capture import CaptureError, positions
from labeler.labeling.engines.engine import (
    EngineFailed,
    EngineOutOfMemory,
    Failed,
    Labeled,
    Request,
)
from labeler.labeling.engines.vllm.vllm_load import is_out_of_memory
from labeler.labeling.engines.vllm.vllm_outputs import Completion, Output, OutputReader
from labeler.labeling.engines.vllm.worker import ASKED_KEY, SPANS_KEY
from labeler.labeling.rendering.spans import Span
from schemas import Labels, Sampling
from schemas.errors import first_line


@dataclass(frozen=True, kw_only=True)
class _Job:
    """The work that one request id of vLLM stands for.

    Attributes:
        request: the caller's request.
        work: score `input_ids`, or generate after them.
        input_ids, spans: the sequence; a constrained generation is scored as a whole afterwards.
        finish_reason: of the generation that is being scored; None otherwise.
    """

    request: Request
    work: Literal["score", "generate"]
    input_ids: list[int]
    spans: tuple[Span, ...]
    finish_reason: str | None = None


class RequestRunner:
    """Sends requests to a loaded vLLM and yields labels.

    Args:
        vllm: the module.
        llm: a loaded `vllm.LLM`.
        model: the teacher's folder, for messages.
        stop_ids: token ids that end a generation.
        padding: ids of the head that are no tokens.
    """

    def __init__(
        self, vllm: Any, llm: Any, *, model: Path, stop_ids: tuple[int, ...], padding: range
    ) -> None:
        self.llm = llm
        self._sampling_params = vllm.SamplingParams
        self._final_only = vllm.sampling_params.RequestOutputKind.FINAL_ONLY
        self._structured = vllm.sampling_params.StructuredOutputsParams
        self._model, self._stop_ids, self.padding = model, stop_ids, padding
        self._ids = map(str, itertools.count())

    def run(
        self, requests: Sequence[Request], sampling: Sampling | None, reader: OutputReader
    ) -> Iterator[Labeled | Failed]:
        """Label `requests`; yield each as it finishes.

        Args:
            requests: what to label.
            sampling: how to generate; None to score.
            reader: takes the labels out of vLLM's outputs.
        """
        jobs: dict[str, _Job] = {}
        for request in requests:
            params = (
                self.score_params(request.spans, reader.top, request.asked)
                if sampling is None
                else self._generate_params(sampling, request.seed, reader.top)
            )
            job = _Job(
                request=request,
                work="score" if sampling is None else "generate",
                input_ids=request.input_ids,
                spans=request.spans,
            )
            jobs[self.add(job.input_ids, params)] = job
        while self.llm.llm_engine.has_unfinished_requests():
            for output in self.step():
                if not output.finished:
                    continue
                job = jobs.pop(output.request_id)
                try:
                    if job.work == "score":
                        yield _scored(job, output, reader)
                        continue
                    (completion,) = output.outputs
                    generated = _with_generation(job, completion)
                    if sampling is not None and sampling.structured:
                        params = self.score_params(generated.spans, reader.top)
                        jobs[self.add(generated.input_ids, params)] = generated
                        continue
                    tokens = np.asarray(completion.token_ids, np.int32)
                    yield _labeled(generated, reader.generation_labels(completion, tokens))
                except CaptureError as error:
                    yield Failed(request=job.request, reason=str(error))

    def add(self, input_ids: list[int], params: Any) -> str:
        """Queue a request and return the id that its output will have."""
        request_id = next(self._ids)
        (prompt,) = self.llm.renderer.render_cmpl([{"prompt_token_ids": input_ids}])
        self.llm.llm_engine.add_request(request_id, prompt, params)
        return request_id

    def step(self) -> list[Output]:
        """Run one engine step.

        Raises:
            EngineOutOfMemory: memory ran out.
            EngineFailed: the engine failed otherwise.
        """
        try:
            outputs: list[Output] = self.llm.llm_engine.step()
            return outputs
        except Exception as error:  # any failure of the engine; finished units are safe
            kind = EngineOutOfMemory if is_out_of_memory(error) else EngineFailed
            raise kind(
                f"the engine failed: {first_line(error)}",
                path=self._model,
                hint="finished units are safe, and the same command continues from there; if "
                "memory ran out, lower --max-batched-tokens or --max-sequences; "
                "VLLM_LOGGING_LEVEL=INFO shows vLLM's log",
            ) from error

    def prefill_params(self) -> Any:
        """Return sampling parameters that read a prompt without logprobs."""
        return self._sampling_params(
            max_tokens=1, temperature=0.0, detokenize=False, output_kind=self._final_only
        )

    def score_params(
        self, spans: Sequence[Span], top: int, asked: list[list[int]] | None = None
    ) -> Any:
        """Return sampling parameters that score a prompt at `spans`, with `top` logprobs.

        `asked` are ids to label beside them, a list for each position.
        """
        return self._sampling_params(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=top,
            detokenize=False,
            flat_logprobs=True,
            output_kind=self._final_only,
            extra_args={SPANS_KEY: [[span.start, span.stop] for span in spans], ASKED_KEY: asked},
        )

    def _generate_params(self, sampling: Sampling, seed: int, top: int) -> Any:
        structured = self._structured(**sampling.structured) if sampling.structured else None
        return self._sampling_params(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            min_p=sampling.min_p or 0.0,
            seed=seed,
            stop=list(sampling.stop),
            # Padding ids of the head are no tokens: never sampled. Raw logprobs do not see this.
            logit_bias=dict.fromkeys(self.padding, -100.0) or None,
            stop_token_ids=list(self._stop_ids),
            # Constrained generations are scored afterwards.
            logprobs=None if structured else top,
            structured_outputs=structured,
            detokenize=bool(sampling.stop),
            flat_logprobs=True,
            output_kind=self._final_only,
        )


def _with_generation(job: _Job, completion: Completion) -> _Job:
    """Return the job of scoring a prompt with its generation; the span is the generation."""
    generated = list(completion.token_ids)
    if not generated or completion.finish_reason not in ("stop", "length"):
        raise CaptureError(f"nothing was generated ({completion.finish_reason})")
    whole = job.input_ids + generated
    return _Job(
        request=job.request,
        work="score",
        input_ids=whole,
        spans=(Span(start=len(job.input_ids), stop=len(whole), kind="answer"),),
        finish_reason=completion.finish_reason,
    )


def _scored(job: _Job, output: Output, reader: OutputReader) -> Labeled:
    tokens = np.asarray(job.input_ids, np.int32)
    return _labeled(job, reader.prompt_labels(output, tokens, positions(job.spans)))


def _labeled(job: _Job, labels: Labels) -> Labeled:
    return Labeled(
        request=job.request,
        input_ids=job.input_ids,
        spans=job.spans,
        labels=labels,
        finish_reason=job.finish_reason,
    )
