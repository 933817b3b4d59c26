"""Write the quickstart's corpus: the Python language reference, from the standard library.

`pydoc_data.topics` ships with every Python: 79 articles, about 465 k characters. The split is by
article and by a seeded hash of its name, so no article is on both sides; articles that repeat one
another (a few topics are stored under two names) are kept once.

    train.jsonl     articles to learn from          prompts.jsonl   questions about train topics
    heldout.jsonl   articles to judge by
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from pydoc_data.topics import topics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the three files")
    parser.add_argument("--train-chars", type=int, default=136_000, help="size of train.jsonl")
    parser.add_argument("--heldout-chars", type=int, default=24_000, help="size of heldout.jsonl")
    parser.add_argument("--article-chars", type=int, default=12_000, help="longest stretch of one")
    parser.add_argument("--prompts", type=int, default=32, help="number of questions")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    shuffled = sorted(unique_articles(), key=lambda name: digest(options.seed, name))
    heldout, rest = take(shuffled, options.heldout_chars, options.article_chars)
    train, _ = take(rest, options.train_chars, options.article_chars)
    questions = [
        {"id": f"ask:{article['id']}", "prompt": question(article["id"])}
        for article in train[: options.prompts]
    ]
    write(options.out / "train.jsonl", train)
    write(options.out / "heldout.jsonl", heldout)
    write(options.out / "prompts.jsonl", questions)
    print(
        f"{options.out}: {len(train)} articles to learn from, {len(heldout)} held out, "
        f"{len(questions)} prompts"
    )


def unique_articles() -> list[str]:
    """Return topic names with distinct texts; of equal ones the first name."""
    by_text: dict[str, str] = {}
    for name in sorted(topics):
        by_text.setdefault(" ".join(topics[name].split()), name)
    return sorted(by_text.values())


def digest(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()


def take(names: list[str], budget: int, longest: int) -> tuple[list[dict[str, str]], list[str]]:
    """Return articles (their first `longest` characters) until `budget` is spent, and the rest."""
    taken: list[dict[str, str]] = []
    for index, name in enumerate(names):
        if budget <= 0:
            return taken, names[index:]
        text = topics[name][: min(longest, budget)]
        taken.append({"id": name, "text": text})
        budget -= len(text)
    return taken, []


def question(topic: str) -> str:
    return f"Explain '{topic.replace('-', ' ')}' in the Python language, with a short example."


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
