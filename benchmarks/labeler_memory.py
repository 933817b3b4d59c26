"""Peak memory of `labeler label` over a corpus and over one ten times as large.

    python -m benchmarks.labeler_memory [--full]

Each figure is the largest resident set (`ru_maxrss`) of a separate command and its children. Two
things are measured, both through the command line:

- label: a whole run. What it holds besides libraries and teacher is a unit or two.
- plan: a dry run; `plan_extra_mb` is above that of one document. What the larger input adds is
  compared with its token ids held in memory as Python lists, which is the least that planning
  without its spool on disk takes: 8 bytes a token (and 28 more for every id above 256, not
  counted). Peaks of equal commands differ by some 4 MB here, so a ratio of the extras says little.

By default a tiny random teacher in transformers; --full takes vLLM and larger corpora. On a CPU
oneDNN keeps up to 1024 compiled kernels, one for each shape of a step: some 250 MB, which come in
over the first thousand steps. That is bounded and not the labeler's, and would hide what is: so the
benchmark bounds it, and vLLM's KV cache, at what the smaller run fills already.
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
DEFAULT = {"engine": "transformers", "label": 40, "plan": 3000, "words": 300}
FULL = {"engine": "vllm", "label": 600, "plan": 20_000, "words": 300}
BYTES_A_TOKEN_HELD = 8
ENVIRONMENT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
TARGET_RATIO = 1.1
"""Peak for the larger corpus, as a multiple of the peak for the smaller one."""
TARGET_SHARE = 0.2
"""Growth of the planning peak with the larger input, as a share of its ids held in lists."""


def write_corpus(path: Path, documents: int, words: int) -> None:
    """Write documents of `words` words; each one differs, so that nothing is shared in memory."""
    text = " ".join(TEXT).split()
    with path.open("w") as stream:
        for number in range(documents):
            start = number % len(text)
            body = " ".join((text * (words // len(text) + 2))[start : start + words])
            stream.write(json.dumps({"text": f"{number} {body}"}) + "\n")


def peak(arguments: Iterable[object]) -> tuple[int, dict[str, object]]:
    """Return the peak bytes of one `labeler` command, and the JSON that it prints."""
    command = [sys.executable, "-m", "labeler", *map(str, arguments), "--json"]
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=said, stderr=errors, env=os.environ | ENVIRONMENT
        )
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
        flags += ["--k", 8, "--unit-labels", 8192, "--kv-cache-gb", 0.05]

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
        nothing, plan_few = measured("plan", 1)[0], measured("plan", few)[0]
        plan_many, facts = measured("plan", many)
    held = BYTES_A_TOKEN_HELD * int(str(facts["tokens"]))
    ratios = {"label_ratio": label_many / label_few, "plan_ratio": plan_many / plan_few}
    share = (plan_many - plan_few) / held
    result = {
        "benchmark": "labeler_memory",
        "engine": sizes["engine"],
        "times_larger": TIMES,
        "label_peak_mb": [round(label_few / 1e6, 1), round(label_many / 1e6, 1)],
        "plan_extra_mb": [round((plan - nothing) / 1e6, 1) for plan in (plan_few, plan_many)],
        **{name: round(ratio, 3) for name, ratio in ratios.items()},
        "held_in_lists_mb": round(held / 1e6, 1),
        "growth_share_of_held": round(share, 3),
        "target": {"ratios": TARGET_RATIO, "growth_share_of_held": TARGET_SHARE},
        "met": max(ratios.values()) <= TARGET_RATIO and share <= TARGET_SHARE,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
