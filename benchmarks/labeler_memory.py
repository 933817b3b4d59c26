"""Peak memory of `labeler label` over a corpus and over one ten times as large.

    python -m benchmarks.labeler_memory [--full]

Each figure is the largest resident set (`ru_maxrss`) of a command of its own, its children
included. Two things are measured, both through the command line:

- label: a whole run. What it holds besides libraries and teacher is a unit or two.
- plan: a dry run, above that of one document. It is compared with the token ids of the input held
  in memory as Python lists, which is what planning without its spool on disk takes: 8 bytes a
  token for the list, and 32 for every id above 256.

By default a tiny random teacher in transformers; --full takes vLLM and larger corpora.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.tiny_model import TEXT, make_model, make_tokenizer

TIMES = 10
DEFAULT = {"engine": "transformers", "label": 40, "plan": 1500, "words": 300}
FULL = {"engine": "vllm", "label": 600, "plan": 20_000, "words": 300}
BYTES_A_TOKEN_HELD = 8
TARGET_LABEL, TARGET_PLAN = 1.1, 1.5
"""Ratio of peaks: of whole runs, and of what planning takes above its smallest."""


def write_corpus(path: Path, documents: int, words: int) -> None:
    """Documents of `words` words; every one differs, so that nothing is shared in memory."""
    text = " ".join(TEXT).split()
    with path.open("w") as stream:
        for number in range(documents):
            start = number % len(text)
            body = " ".join((text * (words // len(text) + 2))[start : start + words])
            stream.write(json.dumps({"text": f"{number} {body}"}) + "\n")


def peak(arguments: Iterable[object]) -> tuple[int, dict[str, object]]:
    """Peak bytes of one `labeler` command, and the JSON that it prints."""
    command = [sys.executable, "-m", "labeler", *map(str, arguments), "--json"]
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=said, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        for stream in (said, errors):
            stream.seek(0)
        if process.returncode:
            raise RuntimeError(errors.read())
        return usage.ru_maxrss * 1024, json.loads(said.read())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    sizes = FULL if parser.parse_args().full else DEFAULT
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        vocabulary = make_tokenizer(here / "teacher", vocab_size=2000)
        make_model(here / "teacher", vocab_size=vocabulary)
        flags = ["--model", here / "teacher", "--engine", sizes["engine"], "--max-length", 256]
        flags += ["--k", 8, "--unit-labels", 8192]

        def measured(what: str, documents: int) -> tuple[int, dict[str, object]]:
            corpus = here / f"{what}-{documents}.jsonl"
            write_corpus(corpus, documents, int(sizes["words"]))
            out = here / f"out-{what}-{documents}"
            more = ["--dry-run"] if what == "plan" else []
            bytes_, facts = peak(["label", corpus, "--out", out, *flags, *more])
            print(f"{what:5} {documents:7} documents: {bytes_ / 1e6:7.1f} MB", flush=True)
            return bytes_, facts

        few, many = int(sizes["label"]), int(sizes["label"]) * TIMES
        label_few, label_many = measured("label", few)[0], measured("label", many)[0]
        few, many = int(sizes["plan"]), int(sizes["plan"]) * TIMES
        nothing = measured("plan", 1)[0]
        plan_few, plan_many = measured("plan", few)[0] - nothing, measured("plan", many)
        extra_many, facts = plan_many[0] - nothing, plan_many[1]
        held = BYTES_A_TOKEN_HELD * int(str(facts["tokens"]))
    result = {
        "benchmark": "labeler_memory",
        "engine": sizes["engine"],
        "times_larger": TIMES,
        "label_peak_mb": [round(label_few / 1e6, 1), round(label_many / 1e6, 1)],
        "label_ratio": round(label_many / label_few, 3),
        "plan_extra_mb": [round(plan_few / 1e6, 1), round(extra_many / 1e6, 1)],
        "plan_ratio": round(extra_many / max(plan_few, 1), 3),
        "held_in_lists_mb": round(held / 1e6, 1),
        "target": {"label_ratio": TARGET_LABEL, "plan_ratio": TARGET_PLAN},
        "met": label_many <= TARGET_LABEL * label_few and extra_many <= TARGET_PLAN * plan_few,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
