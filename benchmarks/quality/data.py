"""Data of the arms: the quickstart's label sets, and the teacher's generations.

The commands are those of scripts/quickstart; its files are used if they exist.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.quality.arms import DTYPE, PACK_TOKENS, Arm
from schemas import LabelSet, SoftshardsError, open_label_set
from schemas.atomic import write_atomic
from trainer.data.dataset import LabelDataset
from trainer.data.mixture import open_mixture

ROOT = Path(__file__).parents[2]
PROMPT_TOKENS = 64
ROW_TOKENS = 512
"""Most tokens of prompt and generation together: two rows fill a pack."""
MOST_SETS = 20
"""Most label sets of generations for one run: if it needs more, the texts are too short."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The teacher, a student sliced from it, and label sets of disjoint articles."""

    teacher: Path
    student: Path
    train: LabelSet
    heldout: LabelSet


def call(*command: object) -> None:
    """Run a Python module or script of this repository; exit if it fails.

    Raises:
        SystemExit: with its exit code.
    """
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=False)
    if done.returncode:
        what = " ".join(map(str, command[:3]))
        print(f"stopped: {what} ended with code {done.returncode}", file=sys.stderr)
        raise SystemExit(done.returncode if done.returncode > 0 else 1)


def prepare(quickstart: Path, teacher: Path, engine: str) -> Inputs:
    """Return the quickstart's files; make those that are missing."""
    if not (teacher / "config.json").is_file():
        call("scripts/get_teacher.py", teacher)
    sets = {part: quickstart / f"labels-{part}" for part in ("train", "heldout")}
    for part, path in sets.items():
        if not _is_complete(path):
            corpus = quickstart / "corpus"
            call("scripts/make_corpus.py", corpus)
            label(corpus / f"{part}.jsonl", path, teacher, engine, "--unit-labels", 8192)
    student = quickstart / "student"
    if not (student / "config.json").is_file():
        call(
            *("-m", "trainer", "slice", "--teacher", teacher, "--labels", sets["train"]),
            *("--out", student, "--keep", 22, "--candidates", 3),
            *("--sample-tokens", 1024, "--dtype", DTYPE),
        )
    return Inputs(
        teacher=teacher,
        student=student,
        train=open_label_set(sets["train"]),
        heldout=open_label_set(sets["heldout"]),
    )


def label(source: Path, out: Path, teacher: Path, engine: str, *more: object) -> None:
    """Run `labeler label` with the quickstart's settings."""
    fixed = ("--model", teacher, "--k", 64, "--row-group-labels", 4096, "--engine", engine)
    call("-m", "labeler", "label", source, "--out", out, *fixed, *more)


def with_more(inputs: Inputs, quickstart: Path, out: Path, arm: Arm, engine: str) -> Path:
    """Return the training set with what an arm needs beside the top k, in the same order.

    That is 50 draws and the teacher's final states, or the tail at the arm's temperature.

    Args:
        inputs: the files of the quickstart.
        quickstart: its folder, with the corpus.
        out: where the set goes.
        arm: the arm.
        engine: that labels.

    Raises:
        SystemExit: the rows are not those of the quickstart's set.
    """
    if arm.states is not None:
        name = f"labels-states-{arm.states:g}"
        flags: list[object] = ["--draws", 50, "--states", "final", "--state-kl", arm.states]
    else:
        name = f"labels-t{arm.temperature:g}"
        flags = ["--label-temperatures", f"{arm.temperature:g}"]
    path = out / name
    if not _is_complete(path):
        corpus = quickstart / "corpus"
        if not (corpus / "train.jsonl").is_file():
            call("scripts/make_corpus.py", corpus)
        label(corpus / "train.jsonl", path, inputs.teacher, engine, "--unit-labels", 8192, *flags)
    found = open_label_set(path)
    if (found.rows, found.tokens) != (inputs.train.rows, inputs.train.tokens):
        raise SystemExit(f"error: {path} has other rows than {inputs.train.place}: delete it")
    return path


def state_bytes(labels: LabelSet) -> float | None:
    """Return the bytes of hidden states per label; None where a set has none."""
    totals = labels.manifest.totals
    if totals is None or totals.hidden_bytes is None:
        return None
    return totals.hidden_bytes / totals.labels


def generations(inputs: Inputs, out: Path, *, seed: int, tokens: int, engine: str) -> list[Path]:
    """Return label sets of the teacher's own text, of at least `tokens` tokens, for one seed.

    The teacher continues the first tokens of the training rows at temperature 1. The lengths of its
    texts are not known in advance, so sets are made one after the other until there are enough
    tokens, each with a sampling seed of its own (in its manifest) that no other run uses.

    Raises:
        SystemExit: the teacher's texts are too short to train on.
    """
    prompts = out / "prompts.jsonl"
    count = write_prompts(inputs.train, prompts)
    sets: list[Path] = []
    missing = tokens
    while missing > 0:
        if len(sets) == MOST_SETS:
            raise SystemExit(f"error: {missing} tokens are missing after {MOST_SETS} generations")
        sampling_seed = 1000 * (seed + 1) + len(sets)
        path = out / f"seed-{sampling_seed}"
        if not _is_complete(path):
            label(
                *(prompts, path, inputs.teacher, engine, "--mode", "generate"),
                *("--temperature", 1, "--seed", sampling_seed),
                *("--limit", min(count, missing // ROW_TOKENS + 2), "--unit-labels", 4096),
                *("--max-tokens", ROW_TOKENS - PROMPT_TOKENS),
            )
        sets.append(path)
        missing -= open_label_set(path).tokens
    return sets


def steps_of(sets: list[Path], tokens: int, seed: int) -> int:
    """Return the steps of one pack that amount to `tokens`; packing depends on the seed."""
    parts = open_mixture(open_label_set(sets[0]), tuple(map(str, sets[1:])))
    once = LabelDataset(parts, pack_tokens=PACK_TOKENS, seed=seed).count()
    return max(1, round(once.packs * tokens / once.tokens))


def write_prompts(labels: LabelSet, path: Path) -> int:
    """Write the first tokens of each row that is longer; return the number of prompts."""
    lines = []
    for group in labels.row_groups:
        table = labels.read_row_group(group, ["id", "chunk", "input_ids"])
        for row in table.to_pylist():
            if len(row["input_ids"]) > PROMPT_TOKENS:
                name, ids = f"{row['id']}:{row['chunk']}", row["input_ids"][:PROMPT_TOKENS]
                lines.append(json.dumps({"id": name, "input_ids": ids}) + "\n")
    if not path.is_file() or path.read_text(encoding="utf-8") != "".join(lines):
        write_atomic(path, "".join(lines))
    return len(lines)


def _is_complete(path: Path) -> bool:
    try:
        open_label_set(path)
    except SoftshardsError:
        return False
    return True
