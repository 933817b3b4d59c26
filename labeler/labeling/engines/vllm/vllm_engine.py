"""The vLLM engine: a teacher in this process. Only the files of this room know vLLM."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from labeler.console import err
from labeler.labeling.engines.engine import EngineFacts, EngineOutOfMemory, Failed, Labeled, Request
from labeler.labeling.engines.fit_states import OutputHead
from labeler.labeling.engines.vllm.state_tap import export_head
from labeler.labeling.engines.vllm.vllm_arguments import label_arguments
from labeler.labeling.engines.vllm.vllm_environment import distribution
from labeler.labeling.engines.vllm.vllm_load import import_vllm, is_out_of_memory, load_llm
from labeler.labeling.engines.vllm.vllm_outputs import OutputReader, PublicReader, TensorReader
from labeler.labeling.engines.vllm.vllm_requests import RequestRunner
from labeler.labeling.engines.vllm.vllm_self_test import enable_tensors
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.teacher.teacher import Teacher
from schemas import SoftshardsError
from schemas.asked_ids import asked_count
from schemas.errors import first_line

MOST_PADDING = 256
"""Padding rows of a head that are over-requested; a row short of k real ids is stored shorter."""


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
        self._teacher, self._sampling = teacher, config.sampling
        self._undo = contextlib.ExitStack()
        arguments = label_arguments(
            teacher.path, config, dtype=dtype, batched_tokens=batched_tokens
        )
        self.runner = self._load(vllm, arguments)
        model = self.runner.llm.llm_engine.model_config
        top = min(k + len(self.runner.padding), model.get_vocab_size())
        public = PublicReader(k=k, vocab_size=teacher.vocab_size, top=top)
        tensors = TensorReader(
            k=k,
            vocab_size=teacher.vocab_size,
            states=config.state_layers,
            asked=asked_count(config.ids_from),
            temperatures=config.label_temperatures,
        )
        reason: str | None = "requested (--capture public)"
        if config.capture == "auto":
            reason = enable_tensors(
                self.runner,
                public,
                tensors,
                self._undo,
                vocab_size=teacher.vocab_size,
                draws=config.draws,
            )
            if reason is not None:
                self.close()  # a failed self-test may have left the engine in any state
                if flag := config.needs_tensors:
                    raise SoftshardsError(
                        f"{flag} needs tensors from inside vLLM's workers: {reason}",
                        hint=f"leave {flag} out, or pass --engine transformers",
                    )
                err.print(f"labels through vLLM's public interface: {reason}", style="yellow")
                self.runner = self._load(vllm, arguments)
        self.reader: OutputReader = tensors if reason is None else public
        llm_engine = self.runner.llm.llm_engine
        self.facts = EngineFacts(
            name=distribution() or "vllm",
            version=vllm.__version__,
            device=llm_engine.vllm_config.device_config.device_type,
            dtype=str(model.dtype).removeprefix("torch."),
            head_dtype=str(model.head_dtype).removeprefix("torch."),
            tail_source=self.reader.tail_source,
            entropy_source=self.reader.entropy_source,
            settings={name: v for name, v in arguments.items() if name != "model"}
            | {"VLLM_BATCH_INVARIANT": os.environ.get("VLLM_BATCH_INVARIANT", "0")}
            | {"capture": "tensors" if reason is None else f"public interface: {reason}"},
        )

    def _load(self, vllm: Any, arguments: dict[str, Any]) -> RequestRunner:
        try:
            llm = load_llm(vllm, arguments)
        except Exception as error:  # weights, settings, memory: each raises what it likes
            kind = EngineOutOfMemory if is_out_of_memory(error) else SoftshardsError
            raise kind(
                f"vLLM cannot load the teacher: {first_line(error)}",
                path=self._teacher.path,
                hint="set VLLM_LOGGING_LEVEL=INFO to see its log; lower --max-batched-tokens, "
                "--max-sequences or --kv-cache-gb if memory is short",
            ) from error
        head = llm.llm_engine.model_config.get_vocab_size()
        return RequestRunner(
            vllm,
            llm,
            model=self._teacher.path,
            stop_ids=self._teacher.stop_ids,
            padding=range(self._teacher.vocab_size, head)[:MOST_PADDING],
        )

    def run(self, requests: Sequence[Request]) -> Iterator[Labeled | Failed]:
        """Label `requests`; see `engine.Engine`."""
        return self.runner.run(requests, self._sampling, self.reader)

    def output_head(self) -> OutputHead:
        """Return the teacher's head, on the host; see `engine.Engine`."""
        return export_head(self.runner.llm.collective_rpc("softshards_head"))

    def close(self) -> None:
        """Free the engine's memory, and give vLLM its own methods back."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self._undo.close()
        self.runner.llm.llm_engine.engine_core.shutdown()
        del self.runner
        cleanup_dist_env_and_memory()
