"""L1: labeling end to end, against the same vLLM calls with outputs dropped and against prefill.

    python -m benchmarks.labeler_overhead [--full] [--k 64]

One engine, loaded once, on the quickstart's teacher and articles; the three take turns:

- labels: the labeler's own loop (`labeler.labeling.runs.label_units`): engine, capture, encoding,
  compression, shards and journal on disk;
- dropped: the same requests through the same engine, what comes back is thrown away;
- prefill: the same prompts without logprobs.

`ratio` is labels / dropped: what the labeler adds to vLLM. `vs_prefill` is labels / prefill: what
labels cost at all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labeler.labeling.engines.vllm.vllm_environment import prepare_environment

prepare_environment()

from labeler.labeling.engines.vllm.vllm_engine import VllmEngine  # noqa: E402
from labeler.labeling.inputs.find_inputs import find_inputs  # noqa: E402
from labeler.labeling.label_config import LabelConfig  # noqa: E402
from labeler.labeling.rendering.spans import Span  # noqa: E402
from labeler.labeling.runs import label_units  # noqa: E402
from labeler.labeling.runs.begin import begin  # noqa: E402
from labeler.labeling.runs.stopping import Stop  # noqa: E402
from labeler.labeling.teacher.teacher import open_teacher  # noqa: E402
from labeler.labeling.teacher.teacher_identity import (  # noqa: E402
    local_weights,
    teacher_identity,
)
from schemas import Manifest  # noqa: E402
from schemas.journal import JOURNAL  # noqa: E402
from schemas.plan import open_plan, read_unit  # noqa: E402

ROOT = Path(__file__).parents[1]
TEACHER = ROOT / ".cache" / "smollm2-135m-instruct"


def time_labels(todo: list[int], config: LabelConfig, teacher: Any, manifest: Manifest) -> float:
    for entry in (config.out / JOURNAL).glob("unit-*"):
        entry.unlink()
    start = time.perf_counter()
    label_units.label_units(todo, config, teacher, manifest, Stop())
    return time.perf_counter() - start


def time_calls(engine: VllmEngine, prompts: list[list[int]], params: Callable[[int], Any]) -> float:
    """Send prompts to vLLM unit by unit, as the labeler does, and drop what comes back."""
    start = time.perf_counter()
    for unit in prompts:
        for ids in unit:
            engine.runner.add(ids, params(len(ids)))
        while engine.runner.llm.llm_engine.has_unfinished_requests():
            engine.runner.step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="ten times the tokens")
    parser.add_argument("--k", type=int, default=64)
    arguments = parser.parse_args()
    subprocess.run([sys.executable, ROOT / "scripts" / "get_teacher.py", TEACHER], check=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = folder / "corpus"
        subprocess.run([sys.executable, ROOT / "scripts" / "make_corpus.py", corpus], check=True)
        config = LabelConfig(
            model=TEACHER,
            out=folder / "labels",
            k=arguments.k,
            max_length=512,
            limit=60 if arguments.full else 3,
            unit_labels=1024,
            max_batched_tokens=1024,
        )
        teacher = open_teacher(TEACHER, max_length=config.max_length)
        identity = teacher_identity(teacher, config, local_weights(TEACHER, "full"))
        files = find_inputs([str(corpus / "train.jsonl")])
        (config.out).mkdir()
        manifest = begin(files, config, teacher, identity)
        plan = open_plan(config.out, manifest.plan)
        todo = list(range(manifest.planned_units))
        prompts = [read_unit(plan, unit)["input_ids"].to_pylist() for unit in todo]
        tokens = sum(len(ids) for unit in prompts for ids in unit)
        engine = VllmEngine(
            teacher, config, dtype=identity.dtype, k=identity.k, batched_tokens=1024
        )
        print(f"{tokens} tokens in {len(todo)} units, capture: {engine.facts.settings['capture']}")
        close = engine.close
        engine.close = lambda: None  # type: ignore[method-assign]  # one engine for all rounds
        label_units.load_engine = lambda *_, **__: engine  # type: ignore[assignment]
        plain = engine.runner.prefill_params()

        def score(length: int) -> Any:
            return engine.runner.score_params(
                [Span(start=1, stop=length, kind="text")], engine.reader.top
            )

        time_calls(engine, prompts[:1], score)  # warm
        taken: dict[str, list[float]] = {"labels": [], "dropped": [], "prefill": []}
        for _ in range(3):
            taken["labels"].append(time_labels(todo, config, teacher, manifest))
            taken["dropped"].append(time_calls(engine, prompts, score))
            taken["prefill"].append(time_calls(engine, prompts, lambda _: plain))
        close()
    best = {what: statistics.median(times) for what, times in taken.items()}
    for what, value in best.items():
        print(f"{what:8} {value:7.2f} s, {tokens / value:6.0f} tokens/s; all: {taken[what]}")
    result = {
        "ratio": round(best["labels"] / best["dropped"], 4),
        "vs_prefill": round(best["labels"] / best["prefill"], 4),
        "k": arguments.k,
        "tokens": tokens,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
