"""Q1 and Q2: soft labels against plain training, and offline labels against the teacher itself.

    python -m benchmarks.quality [--tokens 32707] [--seeds 3] [--arms kd ce kl online]

One student (the quickstart's, 22 of the teacher's 30 layers), the same tokens in the same order for
each seed, one pass; measured on articles that no arm has seen. The arms are in
`benchmarks/quality/arms.py`. Stop it at any time: every arm and seed has a folder under --out,
finished ones are reused, and an unfinished one resumes from its checkpoint.

`ce_generations` trains on as many tokens of other text: the teacher's own, generated at temperature
1 after the first 64 tokens of the training rows, and different for each seed. The prompts are not
labeled, so it learns from fewer labels than the others. The arms on stored states label the
articles again, with states and draws, once per --state-kl;
`bucketed_kl_t2` labels them with the tail at T = 2.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.quality.arms import ARMS, Arm
from benchmarks.quality.data import ROOT, prepare
from benchmarks.quality.runs import Settings, measure, row_of, run, student_name
from benchmarks.quality.table import MOST_SEEDS, markdown, summarize
from labeler.console import human_seconds
from schemas import SoftshardsError
from schemas.atomic import write_atomic


def main() -> None:
    options = _options()
    # End as on Ctrl-C: child processes end, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    inputs = prepare(options.quickstart, options.teacher, options.engine)
    tokens = options.tokens or inputs.train.tokens
    settings = Settings(
        inputs=inputs,
        quickstart=options.quickstart,
        out=options.out / f"tokens-{tokens}",
        tokens=tokens,
        engine=options.engine,
        keep_models=options.keep_models,
    )
    arms = [arm for arm in ARMS if arm.name in options.arms]
    references = _references(settings)
    rows = _rows([(arm, seed) for seed in range(options.seeds) for arm in arms], settings)
    summary = {
        "tokens": tokens,
        "seeds": options.seeds,
        "train_labels": inputs.train.labels,
        "heldout_labels": inputs.heldout.labels,
        "references": references,
        **summarize(rows),
    }
    about = [
        f"Student {student_name(inputs.student)}, {tokens:,} tokens of training, "
        f"{options.seeds} seed(s), {inputs.heldout.labels:,} held-out labels; mean ± standard "
        "deviation over seeds."
    ]
    text = markdown(summary, about)
    write_atomic(settings.out / "table.md", text)
    print(text)
    print(f"table: {settings.out / 'table.md'}")
    result = {"rows": rows, "summary": summary}
    write_atomic(settings.out / "result.json", json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def _rows(jobs: list[tuple[Arm, int]], settings: Settings) -> list[dict[str, Any]]:
    """Return the row of each job, reused or made; print progress and an ETA."""
    known = {(arm.name, seed): row_of(arm, seed, settings) for arm, seed in jobs}
    left = sum(row is None for row in known.values())
    if left < len(jobs):
        _say(f"{len(jobs) - left} of {len(jobs)} runs reused")
    began, made, rows = time.monotonic(), 0, []
    for arm, seed in jobs:
        row = known[arm.name, seed]
        if row is None:
            eta = human_seconds((time.monotonic() - began) / made * (left - made)) if made else "?"
            _say(f"run {made + 1} of {left}: {arm.name} ({arm.what}), seed {seed}; ETA {eta}")
            row = run(arm, seed, settings)
            made += 1
        rows.append(row)
    return rows


def _references(settings: Settings) -> dict[str, Any]:
    """Measure teacher and untrained student; return them as `summarize` returns arms."""
    inputs = settings.inputs
    models = {"teacher": inputs.teacher, "untrained": inputs.student}
    found = measure(inputs, list(models.values()), settings.out / "references.json")
    return {
        name: {metric: {"mean": value, "deviation": None} for metric, value in values.items()}
        for name, values in zip(models, found)
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [arm.name for arm in ARMS]
    parser.add_argument("--tokens", type=int, help="training tokens per run (default one pass)")
    parser.add_argument("--seeds", type=int, default=3, help="runs per arm (default 3)")
    parser.add_argument(
        "--arms",
        nargs="+",
        choices=names,
        default=names,
        metavar="ARM",
        help=f"any of {', '.join(names)} (default all)",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "quality")
    parser.add_argument(
        "--quickstart",
        type=Path,
        default=ROOT / "runs" / "quickstart",
        help="folder with the quickstart's label sets and student",
    )
    parser.add_argument("--teacher", type=Path, default=ROOT / ".cache" / "smollm2-135m-instruct")
    parser.add_argument(
        "--engine",
        default="vllm",
        choices=["vllm", "transformers"],
        help="engine that labels and generates if the label sets are missing",
    )
    parser.add_argument(
        "--keep-models", action="store_true", help="keep the trained models (425 MB each)"
    )
    options = parser.parse_args()
    if not 1 <= options.seeds <= MOST_SEEDS:
        parser.error(f"--seeds must be from 1 to {MOST_SEEDS}")
    if options.tokens is not None and options.tokens < 1:
        parser.error("--tokens must be at least 1")
    for name in ("out", "quickstart", "teacher"):  # commands run in the folder of the repository
        setattr(options, name, getattr(options, name).resolve())
    return options


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except SoftshardsError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
