"""The measurement of one model, in its own process.

`python -m labeler.labeling.bench.bench_model MODEL WORKLOAD`, where WORKLOAD is JSON, writes a line
of JSON once the model is loaded, then one for each line of standard input; it ends with its input.
"""

from __future__ import annotations

import functools
import json
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from labeler.labeling.bench.bench_workload import Loaded, Round, Wave, Workload, read_prompts
from labeler.labeling.engines.vllm.vllm_arguments import bench_arguments
from labeler.labeling.engines.vllm.vllm_load import import_vllm, load_llm
from labeler.labeling.runs import energy
from labeler.labeling.runs.energy import Energy
from schemas import SoftshardsError
from schemas.errors import first_line

if TYPE_CHECKING:
    from pydantic import BaseModel

KIB = 1024
GIB = 1 << 30


def main() -> None:
    """Load the model, and measure a round for each line of standard input."""
    model, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    workload = Workload(**settings | {"concurrency": tuple(settings["concurrency"])})
    # The engine in a process of its own would hide its memory.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # Whatever vLLM prints goes to standard error: standard output is for answers.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

        def answer(content: BaseModel) -> None:
            answers.write(content.model_dump_json() + "\n")
            answers.flush()

        try:
            bench = ModelBench(model, workload)
            answer(bench.loaded)
            for _ in sys.stdin:
                answer(bench.round())
        except SoftshardsError as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:  # the command says what it means
            sys.exit(130)


class ModelBench:
    """A loaded model and its prompts.

    Args:
        model: the model's folder.
        workload: what to measure.

    Raises:
        SoftshardsError: the cache is too small, or the label set cannot be read.
    """

    def __init__(self, model: Path, workload: Workload) -> None:
        self._workload = workload
        self._prompts = [{"prompt_token_ids": ids} for ids in read_prompts(workload)]
        vllm = import_vllm()
        started = time.perf_counter()
        self._llm: Any = load_llm(
            vllm,
            bench_arguments(
                model,
                dtype=workload.dtype,
                max_length=workload.length + 1,
                sequences=max(workload.levels),
                kv_cache_bytes=int(workload.kv_cache_gb * GIB),
            ),
        )
        seconds = time.perf_counter() - started
        config = self._llm.llm_engine.vllm_config
        cache = config.cache_config
        require_cache(cache.num_gpu_blocks * cache.block_size, cache.block_size, workload)
        self._device: str = config.device_config.device_type
        self.loaded = Loaded(
            engine=f"vllm {vllm.__version__}", device=self._device, load_seconds=round(seconds, 2)
        )
        self._params = vllm.SamplingParams(
            max_tokens=workload.new_tokens,
            temperature=0.0,
            ignore_eos=True,
            detokenize=False,
            output_kind=vllm.sampling_params.RequestOutputKind.DELTA,
        )
        self._start_meter = energy_meter(self._device)
        self._wave(max(workload.levels))  # the first call compiles and allocates

    def round(self) -> Round:
        """Measure each level once."""
        waves = tuple(self._wave(count) for count in self._workload.levels)
        return Round(waves=waves, peak_memory_bytes=_peak_memory(self._device))

    def _wave(self, count: int) -> Wave:
        engine = self._llm.llm_engine
        meter = self._start_meter()
        start = time.perf_counter()
        for number, prompt in enumerate(self._llm.renderer.render_cmpl(self._prompts[:count])):
            engine.add_request(str(number), prompt, self._params)
        first: dict[str, float] = {}
        last: dict[str, float] = {}
        tokens = 0  # after all prompts are read
        while engine.has_unfinished_requests():
            outputs = engine.step()
            now = time.perf_counter() - start
            if len(first) == count:
                tokens += sum(len(output.outputs[0].token_ids) for output in outputs)
            for output in outputs:
                first.setdefault(output.request_id, now)
                last[output.request_id] = now
        used = plausible(meter.read())
        read, end = max(first.values()), max(last.values())
        return Wave(
            requests=count,
            first_token_s=statistics.median(first.values()),
            last_token_s=statistics.median(last.values()),
            reading_s=read,
            generating=tokens / (end - read),
            seconds=end,
            joules=used.joules if used else None,
            energy_source=used.source if used else None,
            energy_is_estimated=used is not None and used.is_estimated,
        )


class _Meter(Protocol):
    def read(self) -> Energy | None: ...


def energy_meter(device: str) -> Callable[[], _Meter]:
    """Return what starts a meter: of the device's counters, or else of an estimate."""
    count = functools.partial(energy.start, gpus=device != "cpu")
    counted = count().read()
    if counted is not None and (device == "cpu" or energy.NVML in counted.source):
        return count
    from labeler.labeling.bench.energy_estimate import EnergyEstimate

    try:
        return EnergyEstimate(device).start
    except Exception as error:  # ends the estimate, not the measurement
        if not isinstance(error, ImportError):  # of the extra `energy`, which is not installed
            print(f"codecarbon estimates no energy: {first_line(error)}", file=sys.stderr)
        return functools.partial(energy.Meter, [])


def plausible(used: Energy | None) -> Energy | None:
    """Return the energy, unless it is none that work can use."""
    return used if used is not None and 0 < used.joules < math.inf else None


def require_cache(holds: int, block: int, workload: Workload) -> None:
    """Refuse a cache in which sequences would wait for others, and be read twice.

    Args:
        holds: tokens that it holds.
        block: tokens of a block, which belongs to one sequence.
        workload: the sequences.

    Raises:
        SoftshardsError: it is too small; says which size is enough.
    """
    most = max(workload.levels)
    needs = most * -(-(workload.length + 1) // block) * block
    if needs > holds:
        enough = workload.kv_cache_gb * needs / holds
        raise SoftshardsError(
            f"the cache of --kv-cache-gb {workload.kv_cache_gb:g} holds {holds} tokens; {most} "
            f"sequences at once need {needs}",
            hint=f"--kv-cache-gb {math.ceil(enough * 10) / 10:g}, or fewer requests at once with "
            "--concurrency",
        )


def _peak_memory(device: str) -> int:
    """Return the largest number of bytes that were in use so far."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


if __name__ == "__main__":
    main()
