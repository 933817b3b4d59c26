"""On-policy rounds beside off-policy training on as many labels, in as many optimizer steps.

    python -m benchmarks.rounds [--seeds 3] [--arms rounds text answers text_kd]

The quickstart's `kd` student is trained further in four ways, which share prompts, loss, learning
rate and teacher, and differ in whose text the teacher labels. The prompts are the first 64 tokens
of passages of the training articles; an answer has at most 64 tokens.

`rounds`: three rounds of `trainer rounds`, on the student's own answers. `text`: the continuations
of the prompts in the articles, cut to exactly as many labels. `answers`: the teacher's answers to
the same prompts. `text_kd`: like `text`, with the quickstart's loss.

Each student then answers prompts that no arm learned from, and the teacher labels these answers.
Measured are KL and reverse KL there, and on held-out articles. Stop it at any time: finished
commands and rows are reused.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quality.arms import DTYPE
from benchmarks.quality.data import ROOT, call, label
from benchmarks.quality.table import (
    MOST_SEEDS,
    aligned_table,
    difference,
    gap_text,
    spread,
    spread_text,
)
from schemas import LabelSet, SoftshardsError, open_label_set
from schemas.atomic import write_atomic
from schemas.fingerprint import weights_digest
from trainer.evaluate.results import EvaluationResults
from trainer.rounds.command_steps import RoundFolder, answer_steps
from trainer.rounds.rounds_file import Rounds, read_rounds
from trainer.rounds.rounds_record import RECORD, WHAT, RoundsRecord, gather_round
from trainer.rounds.run_steps import StepStopped, run_step
from trainer.run_files import CHECKPOINTS, FINAL, LOG, RESULT, read_lines
from trainer.train.run_record import RunResult

PROMPT, ANSWER = 64, 64
"""Tokens."""
TRAIN = {"lr": 5e-5, "warmup": 0, "pack_tokens": 512, "packs_per_step": 1, "dtype": DTYPE}
LOSS = ("reverse_kl=1",)
ARMS = {
    "rounds": "its own answers, round by round",
    "text": "the articles",
    "answers": "the teacher's answers",
    "text_kd": "the articles, forward KL x 0.5 + CE",
}
BASE = "text"
METRICS = {"kl": 4, "reverse_kl": 4, "text_kl": 4, "text_reverse_kl": 4}
HEADINGS = ("KL, own answers", "reverse KL, own answers", "KL, articles", "reverse KL, articles")
ROW = "row.json"

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all runs share."""

    teacher: Path
    student: Path
    train: LabelSet
    held_out: LabelSet
    out: Path
    rounds: int
    prompts: int
    apart: int
    engine: str

    @property
    def passages(self) -> Path:
        return self.out / "passages.jsonl"


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # child processes end, too
    settings = Settings(
        teacher=options.teacher,
        student=options.quickstart / "kd" / FINAL,
        train=open_label_set(options.quickstart / "labels-train"),
        held_out=open_label_set(options.quickstart / "labels-heldout"),
        out=options.out,
        rounds=options.rounds,
        prompts=options.prompts,
        apart=options.held_out,
        engine=options.engine,
    )
    _write_passages(settings)
    rows: list[Row] = []
    for seed in range(options.seeds):
        rows += _seed_rows(seed, options.arms, settings)
        text = _markdown(rows, settings)
        write_atomic(options.out / "table.md", text)
        print(text, flush=True)
    result = {"rows": rows, "summary": _summarize(rows)}
    write_atomic(options.out / "result.json", json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def _seed_rows(seed: int, arms: list[str], settings: Settings) -> list[Row]:
    """Return the rows of a seed: of the student before, and of each arm."""
    folder = settings.out / f"seed-{seed}"
    asked = _asked(seed, folder, settings)
    facts = {
        **asked.decisive(),
        "student": weights_digest(settings.student),
        "teacher": settings.train.manifest.identity.weights,
        "held_out_articles": settings.held_out.content_digest,
        "rounds": settings.rounds,
    }
    rows = []
    for arm in ("before", "rounds", *(arm for arm in arms if arm != "rounds")):
        path = folder / arm / ROW
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if known.get("settings") != facts:
            print(f"== seed {seed}, {arm}", file=sys.stderr, flush=True)
            known = {"settings": facts, "row": _make_row(arm, seed, folder, asked, settings)}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(known, indent=1) + "\n")
        _clean(folder / arm)
        rows.append(known["row"])
    return rows


def _make_row(arm: str, seed: int, folder: Path, asked: Rounds, settings: Settings) -> Row:
    """Train in the way of an arm, and measure."""
    rounds = folder / "rounds"
    if arm in ("before", "rounds"):
        call("-m", "trainer", "rounds", folder / "rounds.yaml", "--out", rounds)
    made = RoundsRecord.read(rounds / RECORD, WHAT).rounds
    trained = [RoundFolder(out=rounds, number=i).trained for i in range(settings.rounds)]
    if arm == "before":
        student, measured, runs, count = settings.student, made[0], [], 0
    elif arm == "rounds":
        student, measured, runs = trained[-1] / FINAL, made[-1], trained
        count = sum(each.labels for each in made)
    else:
        steps = sum(RunResult.read(run / RESULT, "a run").steps for run in trained)
        labels = _off_policy(arm, seed, folder, sum(each.labels for each in made), settings)
        out = folder / arm / "train"
        loss = ("forward_kl=0.5", "ce=1") if arm == "text_kd" else LOSS
        flags = [word for name, value in TRAIN.items() for word in (_flag(name), value)]
        flags += [word for term in loss for word in ("--loss", term)]
        call(
            *("-m", "trainer", "train", "--labels", labels, "--student", settings.student),
            *("--out", out, "--epochs", settings.rounds, "--max-steps", steps, "--seed", seed),
            *("--save-dtype", "fp32", *flags),
        )
        student, runs, count = out / FINAL, [out], open_label_set(labels).labels
        last = asked.model_copy(update={"student": str(student), "seed": seed + settings.rounds})
        here = RoundFolder(out=folder / arm, number=0, last=True)
        for step in answer_steps(last, here, (rounds / "prompts" / "held-out.jsonl",)):
            run_step(step, Path(sys.executable))  # the commands reuse what is finished
        measured = gather_round(last, here, {})
    return {
        "arm": arm,
        "seed": seed,
        "labels": count,
        "steps": sum(RunResult.read(run / RESULT, "a run").steps for run in runs),
        "label_uses": sum(line["labels"] for run in runs for line in read_lines(run / LOG)),
        "kl": measured.kl,
        "reverse_kl": measured.reverse_kl,
        **_on_articles(
            student,
            (settings.out if arm == "before" else folder / arm) / "articles.json",
            settings,
        ),
    }


def _asked(seed: int, folder: Path, settings: Settings) -> Rounds:
    """Write and read the file of the rounds."""
    label_flags = {"engine": settings.engine, "max_length": 512}
    path = folder / "rounds.yaml"
    content = {
        "teacher": str(settings.teacher),
        "student": str(settings.student),
        "prompts": str(settings.passages),
        "rounds": settings.rounds,
        "prompts_per_round": settings.prompts,
        "held_out": settings.apart,
        "seed": seed,
        "patience": 0,
        "generate": {**label_flags, "max_tokens": ANSWER},
        "score": {**label_flags, "k": 64},
        "train": TRAIN | {"loss": list(LOSS)},
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(content, indent=1) + "\n")
    return read_rounds(path)


def _write_passages(settings: Settings) -> None:
    """Cut the training articles into prompts and how they go on; ids and no text."""
    lines = []
    size = PROMPT + ANSWER
    for group in settings.train.row_groups:
        table = settings.train.read_row_group(group, ["id", "chunk", "input_ids"])
        for row in table.to_pylist():
            ids = row["input_ids"]
            for start in range(0, len(ids) - size + 1, size):
                passage = {
                    "id": f"{row['id']}:{row['chunk']}:{start}",
                    "input_ids": ids[start : start + PROMPT],
                    "goes_on": ids[start + PROMPT : start + size],
                }
                lines.append(json.dumps(passage) + "\n")
    needed = settings.apart + settings.rounds * settings.prompts
    if len(lines) < needed:
        raise SystemExit(f"error: {needed} passages are needed, the articles have {len(lines)}")
    settings.out.mkdir(parents=True, exist_ok=True)
    if not settings.passages.is_file():
        write_atomic(settings.passages, "".join(lines))


def _off_policy(arm: str, seed: int, folder: Path, count: int, settings: Settings) -> Path:
    """Return labels on the prompts of all rounds: `count` on articles, or the teacher's answers."""
    prompts = folder / "rounds" / "prompts"
    files = [prompts / f"round-{number}.jsonl" for number in range(settings.rounds)]
    passages = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    name = "answers" if arm == "answers" else "text"
    source, out = folder / f"{name}.jsonl", folder / f"labels-{name}"
    if arm == "answers":
        lines = passages
        more: tuple[object, ...] = ("--mode", "generate", "--temperature", 1, "--seed", seed)
        more += ("--max-tokens", ANSWER)
    else:
        lines, more = [], ()
        for passage in passages:
            goes_on = passage["goes_on"][:count]
            count -= len(goes_on)
            if goes_on:
                stop = PROMPT + len(goes_on)
                span = {"start": PROMPT, "stop": stop, "kind": "text"}
                ids = passage["input_ids"] + goes_on
                lines.append({"id": passage["id"], "input_ids": ids, "spans": [span]})
    write_atomic(source, "".join(json.dumps(line) + "\n" for line in lines))
    label(source, out, settings.teacher, settings.engine, *more)
    return out


def _on_articles(student: Path, out: Path, settings: Settings) -> dict[str, float | None]:
    call(
        *("-m", "trainer", "evaluate", "--labels", settings.held_out.path, "--model", student),
        *("--out", out, "--worst", 0),
    )
    found = EvaluationResults.open(out).models[0].all
    return {"text_kl": found.kl, "text_reverse_kl": found.reverse_kl}


def _clean(folder: Path) -> None:
    """Delete models and checkpoints of a finished arm: 425 MB each."""
    for name in (FINAL, CHECKPOINTS):
        for path in folder.glob(f"**/train/{name}"):
            shutil.rmtree(path)


def _summarize(rows: list[Row]) -> dict[str, Any]:
    by_arm: dict[str, dict[int, Row]] = {}
    for row in rows:
        by_arm.setdefault(row["arm"], {})[row["seed"]] = row
    base = by_arm.get(BASE, {})
    return {
        "arms": {
            arm: {name: spread(own, name) for name in ("labels", "steps", "label_uses", *METRICS)}
            for arm, own in by_arm.items()
        },
        f"minus_{BASE}": {
            arm: {name: difference(own, base, name) for name in METRICS}
            for arm, own in by_arm.items()
            if base and arm not in ("before", BASE)
        },
    }


def _markdown(rows: list[Row], settings: Settings) -> str:
    summary = _summarize(rows)
    seeds = len({row["seed"] for row in rows})
    about = (
        f"{settings.rounds} rounds of {settings.prompts} prompts, {settings.apart} held out, "
        f"{seeds} seed(s); mean ± standard deviation over seeds."
    )
    counts = ("labels", "steps", "label_uses")
    table = [
        [arm, ARMS.get(arm, "")]
        + [f"{found[name]['mean']:,.0f}" for name in counts]
        + [spread_text(found[name], decimals) for name, decimals in METRICS.items()]
        for arm, found in summary["arms"].items()
    ]
    header = ["", "trained on", "labels", "steps", "labels seen", *HEADINGS]
    lines = [about, "", *aligned_table(header, table)]
    if gaps := summary[f"minus_{BASE}"]:
        lines += ["", f"Difference from {BASE}, seed by seed (± half of the 95 % interval):", ""]
        cells = [
            [arm, *(gap_text(found[name], decimals) for name, decimals in METRICS.items())]
            for arm, found in gaps.items()
        ]
        lines += aligned_table(["", *HEADINGS], cells)
        lines += ["", "Bold: the interval excludes 0."]
    return "\n".join(lines) + "\n"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rounds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    others = [arm for arm in ARMS if arm != "rounds"]
    parser.add_argument("--seeds", type=int, default=3, help="runs per arm (default 3)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=24, help="per round (default 24)")
    parser.add_argument("--held-out", type=int, default=16, help="prompts kept apart (default 16)")
    parser.add_argument(
        "--arms", nargs="*", choices=others, default=others, help="beside rounds (default all)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "rounds")
    parser.add_argument(
        "--quickstart",
        type=Path,
        default=ROOT / "runs" / "quickstart",
        help="folder of a finished scripts/quickstart",
    )
    parser.add_argument("--teacher", type=Path, default=ROOT / ".cache" / "smollm2-135m-instruct")
    parser.add_argument("--engine", default="vllm", choices=["vllm", "transformers"])
    options = parser.parse_args()
    if not 1 <= options.seeds <= MOST_SEEDS:
        parser.error(f"--seeds must be from 1 to {MOST_SEEDS}")
    for name in ("out", "quickstart", "teacher"):  # commands run in the folder of the repository
        setattr(options, name, getattr(options, name).resolve())
    return options


if __name__ == "__main__":
    try:
        main()
    except SoftshardsError as error:
        raise SystemExit(f"error: {error}") from None
    except StepStopped as stopped:
        raise SystemExit(stopped.code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
