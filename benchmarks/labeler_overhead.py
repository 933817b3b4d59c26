"""L1: labeling end to end, against the same vLLM calls with outputs dropped and against prefill.

    python -m benchmarks.labeler_overhead [--full] [--k 64] [--length 512] [--tokens 2048]
        [--states final]

One engine, loaded once, on the quickstart's teacher and articles; in three rounds, take turns:

- labels: the labeler's own loop (`labeler.labeling.runs.label_units`): engine, capture, encoding,
  compression, shards and journal on disk;
- dropped: the same requests through the same engine, what comes back is thrown away;
- prefill: the same prompts without logprobs;
- states, with --states: as labels, with hidden states. Head and bases, which are made once per set,
  are there already; `fit_seconds` is what they took, with the labels of the sample.

`ratio` is labels / dropped: what the labeler adds to vLLM. `vs_prefill` is labels / prefill: what
labels cost at all; `states_ratio` is states / labels. They are medians of wall clock; `cpu_ratio`,
`cpu_vs_prefill` and `cpu_states_ratio` are the same of processor time, which other programs disturb
less. (With `OMP_NUM_THREADS=1` no thread waits for another: use it where the machine is busy.)
`head_calls` counts calls of the head per engine step.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labeler.labeling.engines.vllm.vllm_environment import prepare_environment

prepare_environment()

from labeler.labeling.engines.vllm.vllm_engine import VllmEngine  # noqa: E402
from labeler.labeling.engines.vllm.vllm_outputs import TensorReader  # noqa: E402
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
from labeler.labeling.writing.set_place import open_place  # noqa: E402
from schemas import Manifest  # noqa: E402
from schemas.journal import JOURNAL  # noqa: E402
from schemas.plan import open_plan, read_unit  # noqa: E402

ROOT = Path(__file__).parents[1]
TEACHER = ROOT / ".cache" / "smollm2-135m-instruct"


@dataclass(frozen=True)
class Taken:
    """Seconds of one pass: wall clock, and processor time of all threads."""

    wall: float
    cpu: float


def take(work: Callable[[], object]) -> Taken:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Taken(time.perf_counter() - wall, time.process_time() - cpu)


def label(todo: list[int], config: LabelConfig, teacher: Any, manifest: Manifest) -> None:
    for entry in (config.folder / JOURNAL).glob("unit-*"):
        entry.unlink()
    with open_place(config.out, writer=config.writer) as place:
        label_units.label_units(todo, config, teacher, manifest, place, Stop())


def capture(engine: VllmEngine, vocab_size: int, states: tuple[str, ...]) -> None:
    """Make a loaded engine take these states along, or none."""
    assert isinstance(engine.reader, TensorReader)
    engine.reader.states = states
    workers = engine.runner.llm.collective_rpc
    workers("softshards_uninstall")
    workers("softshards_install", args=(engine.reader.top, vocab_size, 0, states))


def call(engine: VllmEngine, prompts: list[list[list[int]]], params: Callable[[int], Any]) -> None:
    """Send prompts to vLLM unit by unit, as the labeler does, and drop what comes back."""
    for unit in prompts:
        for ids in unit:
            engine.runner.add(ids, params(len(ids)))
        while engine.runner.llm.llm_engine.has_unfinished_requests():
            engine.runner.step()


@dataclass
class Counts:
    """Calls of the head, and engine steps."""

    head: int = 0
    steps: int = 0


@contextlib.contextmanager
def count_calls(engine: VllmEngine) -> Iterator[Counts]:
    """Count what happens inside the context; the engine runs in this process."""
    llm = engine.runner.llm
    models: list[Any] = llm.apply_model(lambda model: model)
    counts = Counts()
    (model,), step = models, engine.runner.step
    project = model.compute_logits

    def counted_project(*args: Any, **kwargs: Any) -> Any:
        counts.head += 1
        return project(*args, **kwargs)

    def counted_step() -> Any:
        counts.steps += 1
        return step()

    model.compute_logits, engine.runner.step = counted_project, counted_step  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        model.compute_logits, engine.runner.step = project, step  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="ten times the tokens")
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--length", type=int, default=512, help="tokens per row, at most")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens per pass, at least")
    parser.add_argument("--states", help="as for `labeler label`")
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
            max_length=arguments.length,
            limit=400,
            unit_labels=1024,
            max_batched_tokens=1024,
        )
        with_states = dataclasses.replace(config, states=arguments.states, out=folder / "states")
        teacher = open_teacher(TEACHER, max_length=config.max_length)
        weights = local_weights(TEACHER, "full")
        files = find_inputs([str(corpus / "train.jsonl")])
        manifests = {}
        for one in (config, with_states):
            identity = teacher_identity(teacher, one, weights)
            one.folder.mkdir()
            manifests[one.folder] = begin(files, one, teacher, identity)
        manifest = manifests[config.folder]
        plan = open_plan(config.folder, manifest.plan)
        enough = arguments.tokens * (10 if arguments.full else 1)
        todo: list[int] = []
        prompts: list[list[list[int]]] = []
        while sum(len(ids) for unit in prompts for ids in unit) < enough:
            todo.append(len(todo))
            prompts.append(read_unit(plan, todo[-1])["input_ids"].to_pylist())
        tokens = sum(len(ids) for unit in prompts for ids in unit)
        engine = VllmEngine(
            teacher, with_states, dtype=identity.dtype, k=identity.k, batched_tokens=1024
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

        def label_as(one: LabelConfig) -> None:
            capture(engine, teacher.vocab_size, one.state_layers)
            label(todo, one, teacher, manifests[one.folder])
            capture(engine, teacher.vocab_size, ())

        arms: dict[str, Callable[[], object]] = {
            "labels": lambda: label_as(config),
            "dropped": lambda: call(engine, prompts, score),
            "prefill": lambda: call(engine, prompts, lambda _: plain),
        }
        fit = 0.0
        if arguments.states:
            # The engine is loaded with them, and its self-test has called the head.
            first = take(lambda: label(todo, with_states, teacher, manifests[with_states.folder]))
            arms["states"] = lambda: label_as(with_states)
            fit = first.wall - take(arms["states"]).wall
        capture(engine, teacher.vocab_size, ())
        call(engine, prompts[:1], score)  # warm
        with count_calls(engine) as counts:
            call(engine, prompts, score)
        taken: dict[str, list[Taken]] = {name: [] for name in arms}
        for _ in range(3):
            for name, work in arms.items():
                taken[name].append(take(work))
        close()
    wall = {name: statistics.median(one.wall for one in all_) for name, all_ in taken.items()}
    cpu = {name: statistics.median(one.cpu for one in all_) for name, all_ in taken.items()}
    for name, all_ in taken.items():
        each = ", ".join(f"{one.wall:.2f} ({one.cpu:.2f})" for one in all_)
        print(
            f"{name:8} {tokens / wall[name]:6.0f} tokens/s, {tokens / cpu[name]:6.0f} per second "
            f"of processor time; seconds (of processor time): {each}"
        )
    result = {
        "ratio": round(wall["labels"] / wall["dropped"], 4),
        "vs_prefill": round(wall["labels"] / wall["prefill"], 4),
        "cpu_ratio": round(cpu["labels"] / cpu["dropped"], 4),
        "cpu_vs_prefill": round(cpu["labels"] / cpu["prefill"], 4),
        **(
            {
                "states_ratio": round(wall["states"] / wall["labels"], 4),
                "cpu_states_ratio": round(cpu["states"] / cpu["labels"], 4),
                "fit_seconds": round(fit, 1),
            }
            if arguments.states
            else {}
        ),
        "head_calls": round(counts.head / counts.steps, 2),
        "k": arguments.k,
        "length": arguments.length,
        "tokens": tokens,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
