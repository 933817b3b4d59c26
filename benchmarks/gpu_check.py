"""Prove on a GPU what the other tests prove on a CPU: the tests marked `gpu`, and the benchmarks.

    scripts/gpu-check [--trainer-only] [--json FILE]

It ends in a table, which docs/gpu.md keeps, and with --json in a file with all figures and the name
of the card. The trainer's part takes less than ten minutes; it needs pytest and hypothesis, and
neither vLLM nor the network. The labeler's part compares vLLM's CUDA build with transformers and
measures what labels cost beside prefill.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NO_GPU = "error: torch sees no GPU here, and gpu-check proves nothing without one"
TRAINER_TESTS = sorted(ROOT.glob("tests/trainer/**/test_*device*.py"))
LABELER_TESTS = [
    ROOT / "tests/labeler/labeling" / name
    for name in ("test_vllm.py", "test_vllm_tensors.py", "test_real_teacher.py")
]
"""vLLM against transformers, the self-test of the capture, and the quickstart's teacher."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trainer-only", action="store_true", help="leave out vLLM")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    args = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        sys.exit(2)
    import transformers

    found: dict[str, Any] = {
        "card": torch.cuda.get_device_name(),
        "gpus": torch.cuda.device_count(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trainer_tests": run_tests(TRAINER_TESTS, "-m", "gpu"),
        "op_time": run_benchmark("op_time", "--device", "cuda"),
        "student_step": run_benchmark("student_step", "--device", "cuda"),
    }
    if not args.trainer_only:
        found["labeler_tests"] = run_tests(LABELER_TESTS, "-m", "vllm or teacher")
        found["labeler_overhead"] = run_benchmark("labeler_overhead")
    print("\n" + table(found))
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if all(map(passed, found.values())) else 1)


def run_tests(files: list[Path], *more: str) -> dict[str, Any]:
    """Run tests and count them by their outcome."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = ["pytest", "-q", *more, f"--junitxml={report}", "-o", "junit_logging=no"]
        code, seconds, _ = _run(*command, *map(str, files))
        suites = ElementTree.parse(report).getroot().iter("testsuite")
        counts = [dict(suite.attrib) for suite in suites] if report.exists() else []
    total, failed, errors, skipped = (
        sum(int(suite[name]) for suite in counts)
        for name in ("tests", "failures", "errors", "skipped")
    )
    return {
        "exit_code": code,
        "passed": total - failed - errors - skipped,
        "failed": failed + errors,
        "skipped": skipped,
        "seconds": round(seconds, 1),
    }


def run_benchmark(name: str, *more: str) -> dict[str, Any]:
    """Run a benchmark; its last line is its result."""
    code, seconds, output = _run(f"benchmarks.{name}", *more)
    try:
        result = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        result = None
    return {"exit_code": code, "seconds": round(seconds, 1), "result": result}


def passed(part: object) -> bool:
    """Return False for tests or a benchmark that failed."""
    return not isinstance(part, dict) or (part["exit_code"] == 0 and part.get("passed") != 0)


def table(found: dict[str, Any]) -> str:
    """Return all figures that count as a table in Markdown."""
    lines = [
        f"{found['card']}, {found['date']}, torch {found['torch']}, "
        f"transformers {found['transformers']}",
        "",
        "| what | time | memory |",
        "|---|---|---|",
    ]
    for part, named in (("trainer_tests", "the trainer's"), ("labeler_tests", "the labeler's")):
        if tests := found.get(part):
            counts = ", ".join(f"{tests[name]} {name}" for name in ("passed", "failed", "skipped"))
            lines.append(f"| {named} tests: {counts} | {tests['seconds']} s | |")
    op, step = ((found[name]["result"] or {"rows": []}) for name in ("op_time", "student_step"))
    for row in op["rows"]:
        lines.append(
            f"| head of {op['vocab']:,} x {row['d']}, {op['n']} labels, {row['dtype']}: "
            f"{row['name']} | {row['seconds'] * 1e3:.1f} ms | {row['bytes'] / 2**20:,.0f} MiB |"
        )
    for row in step["rows"]:
        lines.append(
            f"| step of 0.6 B, {step['tokens']} tokens, bf16: {row['name']} | "
            f"{row['seconds'] * 1e3:.0f} ms | {row['bytes'] / 2**20:,.0f} MiB |"
        )
    if overhead := (found.get("labeler_overhead") or {}).get("result"):
        lines.append(f"| labels / prefill: {overhead['vs_prefill']:.2f} | | |")
    return "\n".join(lines)


def _run(module: str, *arguments: str) -> tuple[int, float, str]:
    """Run a module from the project's folder, with its output shown; return it, too."""
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if not line.startswith("{"):
            print(line, end="", flush=True)
    return process.wait(), time.monotonic() - begin, "".join(lines)


if __name__ == "__main__":
    main()
