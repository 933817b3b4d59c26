"""`labeler compare`: label the sides that are settings, compare the sets, print the result."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from rich.table import Table

from labeler.console import err, out
from labeler.labelsets.common.tokenizer_file import TextTokenizer, open_tokenizer
from labeler.labelsets.compare.compare_config import CompareConfig
from labeler.labelsets.compare.comparison import Comparison, Position, Side, Spread, compare_sets
from schemas import SoftshardsError, open_label_set
from schemas.urls import is_url
from schemas.yaml_settings import read_settings

SETTINGS = (".yaml", ".yml")


class TopId(TypedDict):
    """One of a teacher's most likely ids, as JSON values."""

    id: int
    text: str
    p: float


class PositionText(TypedDict):
    """A position with text beside its ids, as JSON values."""

    row: str
    chunk: int
    sample: int
    position: int
    kl: float
    token: str
    context: str
    top_a: list[TopId]
    top_b: list[TopId]


def run_compare(config: CompareConfig) -> int:
    """Compare two label sets, print the result, and return 0. Settings files are labeled first.

    Raises:
        SoftshardsError: a side cannot be labeled or opened, or the two cannot be compared.
    """
    sides, inputs = (config.a, config.b), config.inputs
    settings = [path for path in sides if isinstance(path, Path) and path.suffix in SETTINGS]
    if bool(settings) != bool(inputs):
        raise SoftshardsError(
            "settings need inputs to label" if settings else "label sets need no inputs",
            path=settings[0] if settings else inputs[0],
            hint="`labeler compare A B` compares label sets, "
            "`labeler compare a.yaml b.yaml INPUTS` labels with two settings first",
        )
    label = functools.partial(_label, inputs=inputs, rows=config.rows)
    places = [
        label(path) if isinstance(path, Path) and path in settings else path for path in sides
    ]
    set_a, set_b = (open_label_set(place, allow_partial=config.allow_partial) for place in places)
    found = compare_sets(set_a, set_b, worst=config.worst)
    tokenizer = open_tokenizer(set_a.tokenizer_dir)
    worst = [_with_text(position, tokenizer) for position in found.worst]
    if config.as_json:
        print(json.dumps(dataclasses.asdict(found) | {"worst": worst}))
    else:
        _print(found, worst)
    return 0


def _label(settings: Path, inputs: Sequence[str], rows: int) -> Path | str:
    """Label the first records in a process of its own, so only one engine is loaded at a time."""
    content = read_settings(settings)
    if not isinstance(content, dict) or "out" not in content:
        raise SoftshardsError(
            "the settings name no folder for the labels",
            path=settings,
            hint="add a line `out: FOLDER`, with a different folder in each file",
        )
    err.print(f"labeling {rows} records with {settings}")
    command = [sys.executable, "-m", "labeler", "label", *inputs, "--config", str(settings)]
    # Standard output is for this command's result, which may be JSON.
    done = subprocess.run([*command, "--limit", str(rows)], stdout=sys.stderr, check=False)
    if done.returncode:
        raise SoftshardsError(
            f"labeling with these settings failed with exit code {done.returncode}",
            path=settings,
            hint="see the message above",
        )
    out = str(content["out"])
    return out if is_url(out) else Path(out)


def _with_text(position: Position, tokenizer: TextTokenizer) -> PositionText:
    def top(ids: list[tuple[int, float]]) -> list[TopId]:
        return [{"id": i, "text": tokenizer.decode([i]), "p": p} for i, p in ids]

    return {
        "row": position.row,
        "chunk": position.chunk,
        "sample": position.sample,
        "position": position.position,
        "kl": position.kl,
        "token": tokenizer.decode(position.ids[-1:]),
        "context": tokenizer.decode(position.ids[:-1]),
        "top_a": top(position.top_a),
        "top_b": top(position.top_b),
    }


def _print(found: Comparison, worst: list[PositionText]) -> None:
    out.print(
        f"{found.positions} positions of {found.rows} rows compared; not compared: {found.only_a} "
        f"rows only in A, {found.only_b} only in B, {found.other_tokens} with other tokens"
    )
    out.print(_sides(found.a, found.b))
    table = Table("", "mean", "median", "p99", "max", box=None, padding=(0, 2, 0, 0))
    spreads = {
        "KL(A||B)": found.kl_a_to_b,
        "KL(B||A)": found.kl_b_to_a,
        "|Δ log p(token)|": found.token_difference,
    }
    for name, spread in spreads.items():
        table.add_row(name, *_figures(spread))
    out.print(table)
    out.print(
        "nats per position; KL is over the ids that both store and one outcome for the rest: a "
        f"lower bound, which sees {found.common_mass:.2%} of A's mass id by id"
    )
    out.print(f"same most likely token at {found.same_first:.2%} of positions")
    if worst:
        out.print("where B is farthest from A:")
    for line in worst:
        key = f"{line['row']} (chunk {line['chunk']}, sample {line['sample']})"
        before, token = line["context"][-50:], line["token"]
        out.print(
            f"  KL {line['kl']:.2e}, {key} at {line['position']}: {before!r} -> {token!r}\n"
            f"    A  {_tops(line['top_a'])}\n"
            f"    B  {_tops(line['top_b'])}",
        )


def _tops(top: list[TopId]) -> str:
    return "  ".join(f"{one['text']!r} {one['p']:.3f}" for one in top)


def _figures(spread: Spread) -> list[str]:
    return [f"{value:.2e}" for value in (spread.mean, spread.median, spread.p99, spread.max)]


def _sides(a: Side, b: Side) -> Table:
    table = Table("", "A", "B", box=None, padding=(0, 2, 0, 0))
    lines: dict[str, list[str]] = {
        "label set": [side.path for side in (a, b)],
        "teacher": [side.teacher for side in (a, b)],
        "dtype": [_dtypes(side) for side in (a, b)],
        "k": [str(side.k) for side in (a, b)],
        "perplexity": [f"{side.perplexity:.3f}" for side in (a, b)],
        "coverage": [f"{side.coverage:.4f}" for side in (a, b)],
        "bytes per label": [f"{side.bytes_per_label}" for side in (a, b)],
    }
    for name, (left, right) in lines.items():
        table.add_row(name, left, right)
    return table


def _dtypes(side: Side) -> str:
    quantized = f", {side.quantization}" if side.quantization else ""
    return f"{side.dtype}, head {side.head_dtype}{quantized}"
