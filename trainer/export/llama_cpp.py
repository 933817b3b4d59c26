"""Measure a GGUF file in llama.cpp, in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import psutil

from schemas.errors import SoftshardsError
from trainer.child_process import child_command, lifeline
from trainer.console import ProgressBar
from trainer.export.export_record import ExportSpeed
from trainer.export.held_out_rows import Answers, HeldOutRow, Text
from trainer.export.llama_cpp_child import Findings, Job

CHILD = "trainer.export.llama_cpp_child"


class RuntimeResult(NamedTuple):
    """What a runtime made of an exported model.

    Attributes:
        runtime: its name and version.
        answers: one per row.
        speed: None where it was not measured.
        tokenizer_differs: texts that its tokenizer reads as other ids; None if it has none of its
            own, or if there were no texts.
    """

    runtime: str
    answers: list[Answers]
    speed: ExportSpeed | None
    tokenizer_differs: int | None


def has_xllamacpp() -> bool:
    """Check whether llama.cpp can be run."""
    return importlib.util.find_spec("xllamacpp") is not None


def check_xllamacpp() -> None:
    """Check that the package xllamacpp is installed.

    Raises:
        SoftshardsError: it is not.
    """
    if not has_xllamacpp():
        raise SoftshardsError(
            "--labels runs a GGUF file in llama.cpp by the package xllamacpp, which is not "
            "installed",
            hint="pip install xllamacpp, or leave out --labels",
        )


def run_llama_cpp(
    gguf: Path,
    rows: list[HeldOutRow],
    texts: list[Text],
    *,
    threads: int | None,
    timed: tuple[int, int] | None,
) -> RuntimeResult:
    """Run a GGUF file on rows of ids, and its tokenizer on their text.

    Args:
        gguf: the file.
        rows: one at least.
        texts: any number.
        threads: None for one per physical core.
        timed: the load of a measurement of speed; None leaves it out.

    Raises:
        SoftshardsError: llama.cpp does not load the file, or dies.
    """
    threads = threads or psutil.cpu_count(logical=False) or os.cpu_count() or 1
    job = Job(
        gguf=str(gguf.resolve()),
        threads=threads,
        rows=[(row.tokens, row.positions) for row in rows],
        texts=[text.text for text in texts],
        timed=timed,
    )
    with tempfile.TemporaryDirectory(prefix="softshards-export-") as temporary:
        job_path, out = Path(temporary) / "job.json", Path(temporary) / "out.json"
        job.write(job_path)
        _run(job_path, out, gguf, sum(len(row.positions) for row in rows))
        found = Findings.read(out, "the findings of llama.cpp")
    speed = None
    if timed is not None:
        speed = ExportSpeed(
            score_tokens_per_s=statistics.median(found.score),
            generate_tokens_per_s=statistics.median(found.generate),
            score_spread=_spread(found.score),
            generate_spread=_spread(found.generate),
            threads=threads,
        )
    differs = sum(text.ids != ids for text, ids in zip(texts, found.texts, strict=True))
    answers = [Answers(*pair) for pair in zip(found.logprobs, found.top, strict=True)]
    return RuntimeResult(found.runtime, answers, speed, differs if texts else None)


def _run(job: Path, out: Path, gguf: Path, labels: int) -> None:
    log_path = job.with_name("log.txt")
    with lifeline() as standard_input, log_path.open("wb") as log:
        process = subprocess.Popen(
            [*child_command(CHILD), str(job), str(out)],
            stdin=standard_input,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process, which ends that one
        )
        try:
            with ProgressBar("llama.cpp", labels) as progress:
                assert process.stdout is not None
                for line in process.stdout:
                    if line.strip().isdecimal():
                        progress.advance(int(line))
            code = process.wait()
        finally:
            process.kill()
            process.wait()
    if code or not out.is_file():
        lines = log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        found = [line for line in lines if not line.lstrip().startswith("For further information")]
        reason = found[-1].strip() if found else f"its process ended with {code}"
        raise SoftshardsError(f"llama.cpp cannot run the exported file: {reason}", path=gguf.name)


def _spread(values: list[float]) -> float:
    return (max(values) - min(values)) / statistics.median(values)
