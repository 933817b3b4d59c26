"""The measurement of one model, in its own process.

`python -m labeler.labeling.bench.bench_model MODEL WORKLOAD`
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

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
    """Return tokens per second of reading prompts and of generating: medians and their spread.

    The spread is that of the repeats, (largest - smallest) / median.
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

    def params(new_tokens: int) -> Any:
        return vllm.SamplingParams(
            max_tokens=new_tokens,
            temperature=0.0,
            ignore_eos=True,
            detokenize=False,
            output_kind=vllm.sampling_params.RequestOutputKind.DELTA,
        )

    _read_and_generate(llm, prompts, params(2))  # the first call compiles and allocates
    read, generated = [], []
    for _ in range(workload.repeats):
        seconds, speed = _read_and_generate(llm, prompts, params(1 + workload.new_tokens))
        read.append(len(prompts) * workload.prompt_tokens / seconds)
        generated.append(speed)
    return {
        "engine": f"vllm {vllm.__version__}",
        "load_seconds": round(loaded, 2),
        "score_tokens_per_s": round(statistics.median(read), 1),
        "score_spread": round(_spread(read), 3),
        "generate_tokens_per_s": round(statistics.median(generated), 1),
        "generate_spread": round(_spread(generated), 3),
    }


def _read_and_generate(llm: Any, prompts: list[Any], params: Any) -> tuple[float, float]:
    """Return the seconds until every prompt has its first token, and tokens per second after."""
    engine = llm.llm_engine
    start = time.perf_counter()
    for number, prompt in enumerate(llm.renderer.render_cmpl(prompts)):
        engine.add_request(str(number), prompt, params)
    read = now = start
    tokens = 0
    begun: set[str] = set()
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now = time.perf_counter()
        if len(begun) == len(prompts):
            tokens += sum(len(output.outputs[0].token_ids) for output in outputs)
            continue
        begun |= {output.request_id for output in outputs}
        read = now
    return read - start, tokens / (now - read)


def _spread(values: list[float]) -> float:
    return (max(values) - min(values)) / statistics.median(values)


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
