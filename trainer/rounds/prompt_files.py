"""Prompts of each round, as JSON lines for `labeler label`: the same at every call."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from schemas import SoftshardsError
from schemas.atomic import write_atomic
from schemas.errors import first_line
from trainer.rounds.rounds_file import Rounds

HELD_OUT = "held-out/"
"""Start of the ids of prompts that are kept apart."""

Prompt = dict[str, object]


def write_prompts(folder: Path, rounds: Rounds) -> list[Path]:
    """Write the prompts of each round and, last, the ones that are kept apart.

    Args:
        folder: receives `round-N.jsonl` and `held-out.jsonl`.
        rounds: what is asked for.

    Returns:
        The files; the last one has the prompts that are kept apart.

    Raises:
        SoftshardsError: the file cannot be read, has too few prompts, or an id twice.
    """
    path = Path(rounds.prompts)
    prompts = list(_distinct(path))
    if len(prompts) <= rounds.held_out:
        raise SoftshardsError(
            f"{len(prompts)} different prompts, and {rounds.held_out} of them are kept apart "
            "(held_out): none is left to learn from",
            path=path,
            hint="give more prompts, or a smaller held_out",
        )
    random.Random(rounds.seed).shuffle(prompts)
    apart, rest = prompts[: rounds.held_out], prompts[rounds.held_out :]
    count = min(rounds.prompts_per_round, len(rest))
    files = []
    for number in range(rounds.rounds):
        chosen = [rest[(number * count + i) % len(rest)] for i in range(count)]
        files.append(_write(folder / f"round-{number}.jsonl", chosen, ""))
    return [*files, _write(folder / "held-out.jsonl", apart, HELD_OUT)]


def _distinct(path: Path) -> Iterator[Prompt]:
    """Yield each prompt once, whatever its id: none is both learned from and kept apart."""
    contents, ids = set(), set()
    for prompt in _read(path):
        content = json.dumps(prompt | {"id": None}, sort_keys=True, default=str)
        if content in contents:
            continue
        if prompt["id"] in ids:
            raise SoftshardsError(
                f"two prompts have the id {prompt['id']!r}",
                path=path,
                hint="give each prompt an id of its own; one without an id is named by its place",
            )
        contents.add(content)
        ids.add(prompt["id"])
        yield prompt


def _read(path: Path) -> Iterator[Prompt]:
    """Yield the records of a file, each with an id."""
    try:
        if path.suffix == ".parquet":
            records: Iterator[object] = pl.read_parquet(path).iter_rows(named=True)
        elif path.suffix in (".jsonl", ".ndjson"):
            lines = path.read_text(encoding="utf-8-sig").split("\n")
            records = (_parse(line, n, path) for n, line in enumerate(lines) if line.strip())
        else:
            raise ValueError("prompts are read from .jsonl, .ndjson or .parquet")
        for number, record in enumerate(records):
            if not isinstance(record, dict):
                raise ValueError(f"record {number} is not an object")
            own = record.get("id")
            yield record | {"id": str(number if own is None else own)}
    except (OSError, ValueError, RecursionError, pl.exceptions.PolarsError) as error:
        raise SoftshardsError(f"cannot be read: {first_line(error)}", path=path) from error


def _parse(line: str, number: int, path: Path) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SoftshardsError(
            f"it is no JSON: {first_line(error)}", path=path, row=f"line {number + 1}"
        ) from error


def _write(path: Path, prompts: list[Prompt], prefix: str) -> Path:
    lines = (json.dumps(p | {"id": f"{prefix}{p['id']}"}, default=str) for p in prompts)
    text = "".join(f"{line}\n" for line in lines)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text)
    return path
