"""A task made of the project's own data: the Python documentation that the quickstart labels."""

from __future__ import annotations

import json
import random
from pathlib import Path
from pydoc_data.topics import topics

YAML = """\
task: topics
dataset_path: json
dataset_kwargs:
  data_files:
    test: topics.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "{{start}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
"""
WORDS = 24


def write_task(folder: Path, items: int) -> Path:
    """Write a task: which of four passages continues the beginning of a page?"""
    draw = random.Random(0)
    pages = [text.split() for _, text in sorted(topics.items())]
    pages = [words for words in pages if len(words) > 4 * WORDS][:items]
    lines = []
    for number, words in enumerate(pages):
        others = draw.sample([page for page in pages if page is not words], 3)
        choices = [" ".join(page[2 * WORDS : 3 * WORDS]) for page in others]
        answer = number % 4
        choices.insert(answer, " ".join(words[WORDS : 2 * WORDS]))
        start = " ".join(words[:WORDS])
        lines.append(json.dumps({"start": start, "choices": choices, "answer": answer}))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "topics.jsonl").write_text("\n".join(lines) + "\n")
    path = folder / "topics.yaml"
    path.write_text(YAML)
    return path
