"""The measurement of one model, in its own process.

`python -m labeler.labeling.bench.bench_model MODEL WORKLOAD`
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from labeler.labeling.bench.bench import Workload
from labeler.labeling.engines.vllm.vllm_arguments import bench_arguments
from labeler.labeling.engines.vllm.vllm_load import import_vllm, load_llm
from schemas import SoftshardsError, open_label_set


def main() -> None:
    """Print one JSON object as the last line of standard output."""
    model, workload = Path(sys.argv[1]), Workload(**json.loads(sys.argv[2]))
    try:
        print(json.dumps(measure(model, workload)))
    except SoftshardsError as error:
        sys.exit(f"error: {error}")


def measure(model: Path, workload: Workload) -> dict[str, str | float]:
    """Return tokens per second of reading prompts and of generating; the best of the repeats.

    The best, not the median: other work on the machine only makes a model look slower.
    """
    prompts = [{"prompt_token_ids": ids} for ids in _prompts(workload)]
    vllm = import_vllm()
    started = time.perf_counter()
    length = workload.prompt_tokens + workload.new_tokens + 1
    llm = load_llm(
        vllm,
        bench_arguments(model, dtype=workload.dtype, max_length=length, sequences=len(prompts)),
    )
    loaded = time.perf_counter() - started

    def seconds(new_tokens: int) -> float:
        params = vllm.SamplingParams(
            max_tokens=new_tokens, temperature=0.0, ignore_eos=True, detokenize=False
        )
        start = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - start

    seconds(2)  # the first call compiles and allocates
    read = min(seconds(1) for _ in range(workload.repeats))
    whole = min(seconds(1 + workload.new_tokens) for _ in range(workload.repeats))
    return {
        "engine": f"vllm {vllm.__version__}",
        "load_seconds": round(loaded, 2),
        "score_tokens_per_s": round(len(prompts) * workload.prompt_tokens / read, 1),
        "generate_tokens_per_s": round(len(prompts) * workload.new_tokens / (whole - read), 1),
    }


def _prompts(workload: Workload) -> list[list[int]]:
    """Return the label set's tokens, row after row, cut into prompts of equal length."""
    labels = open_label_set(workload.labels)
    wanted = workload.sequences * workload.prompt_tokens
    tokens: list[int] = []
    for group in labels.row_groups:
        for ids in labels.read_row_group(group, columns=["input_ids"])["input_ids"].to_pylist():
            tokens += ids
        if len(tokens) >= wanted:
            break
    if len(tokens) < wanted:
        raise SoftshardsError(
            f"the label set has {len(tokens)} tokens, the workload needs {wanted}",
            path=workload.labels,
            hint="lower --sequences or --prompt-tokens",
        )
    size = workload.prompt_tokens
    return [tokens[i * size : (i + 1) * size] for i in range(workload.sequences)]


if __name__ == "__main__":
    main()
