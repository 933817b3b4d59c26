"""Freeze a tiny label set under tests/golden: python -m scripts.make_golden NAME [plain|compact]

Run once for a new format or codec version, never to make a failing test pass.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.runs.label_run import label
from schemas import decode, open_label_set
from tests.tiny_model import TEXT, make_model, make_tokenizer

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"


def main() -> None:
    target = GOLDEN / sys.argv[1]
    if target.exists():
        sys.exit(f"error: {target} is frozen already")
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)  # so that provenance holds relative paths only
        teacher = Path("teacher")
        make_model(teacher, vocab_size=make_tokenizer(teacher) + 20)
        rows = [{"id": f"doc{i}", "text": text} for i, text in enumerate(TEXT)]
        Path("corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = LabelConfig(
            model=teacher,
            out=Path("labels"),
            k=6,
            engine="transformers",
            max_length=64,
            unit_labels=60,
            codec="compact" if sys.argv[2:] == ["compact"] else "plain",
            row_group_labels=30,
        )
        label(["corpus.jsonl"], config)
        (config.out / ".lock").unlink()
        labels = open_label_set(config.out)
        tables = [labels.read_row_group(group) for group in labels.row_groups]
        first = decode(tables[0]).labels
        expected = {
            "ids": [name for table in tables for name in table["id"].to_pylist()],
            "first_label": {
                "topk_ids": first.topk_ids[0].tolist(),
                "topk_logprobs": first.topk_logprobs[0].tolist(),
                "tail_logprob": float(first.tail_logprob[0]),
            },
        }
        (config.out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
        config.out.rename(target)


if __name__ == "__main__":
    main()
