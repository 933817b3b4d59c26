"""The estimated cost of a run, and the refusals before the teacher is loaded."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from labeler.labeling.planning import budget, engine_memory
from labeler.labeling.runs.identify_teacher import identify_teacher
from labeler.labeling.runs.load_engine import load_engine
from schemas import SoftshardsError
from tests.labeler.command_line import CommandLine
from tests.labeler.conftest import Run, Settings
from tests.labeler.test_cli import assert_one_error, flags

QWEN = 151_936
GB = 10**9


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the memory of the device in GB, all of it free."""

    def have(gigabytes: float) -> None:
        size = int(gigabytes * GB)
        monkeypatch.setattr(engine_memory, "device_memory", lambda: (size, size))

    return have


@pytest.mark.parametrize(
    ("free", "tokens"), [(80, 2048), (14.9, 1024), (7.4, 512), (3.7, 256), (1.9, 256)]
)
def test_a_step_is_halved_until_its_logits_take_a_quarter_of_free_memory(
    settings: Settings, memory: Callable[[float], None], free: float, tokens: int
) -> None:
    config = settings(engine="vllm")
    memory(free)
    found = engine_memory.fit_batched_tokens(config, QWEN)
    assert found == tokens
    assert engine_memory.logits_bytes(found, QWEN) <= free * GB / 4
    assert found == 2048 or engine_memory.logits_bytes(2 * found, QWEN) > free * GB / 4


def test_a_step_that_cannot_fit_is_refused_with_the_settings_to_change(
    settings: Settings, memory: Callable[[float], None]
) -> None:
    config = settings(engine="vllm")
    memory(1.8)
    with pytest.raises(SoftshardsError, match="256 tokens over 151936 ids") as caught:
        engine_memory.fit_batched_tokens(config, QWEN)
    assert "--max-batched-tokens" in str(caught.value)
    assert "--max-sequences" in str(caught.value)


def test_a_step_from_the_flag_is_used_and_every_sequence_has_a_token(
    settings: Settings, memory: Callable[[float], None]
) -> None:
    memory(3.7)
    for asked, sequences, expected in [(4096, 64, 4096), (16, 64, 64), (None, 400, 400)]:
        config = settings(engine="vllm", max_batched_tokens=asked, max_sequences=sequences)
        assert engine_memory.fit_batched_tokens(config, QWEN) == expected


def test_a_gpu_that_vllm_fills_leaves_a_tenth(
    settings: Settings, memory: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_memory, "on_gpu", lambda: True)
    memory(24)
    share = {"gpu-memory-utilization": "0.8"}
    for changes, tokens in [({}, 1024), ({"engine_arg": share}, 2048), ({"kv_cache_gb": 4}, 2048)]:
        config = settings(engine="vllm", **changes)
        assert engine_memory.fit_batched_tokens(config, QWEN) == tokens


def test_weights_are_counted_in_the_dtype_they_run_in(teacher: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    parameters = sum(p.numel() for p in model.parameters())
    for dtype, item in (("bfloat16", 2), ("float32", 4)):
        size = engine_memory.checkpoint_size(tmp_path, dtype)
        assert (size.parameters, size.bytes) == (parameters, item * parameters)


def test_a_full_disk_is_refused_before_anything_runs(tmp_path: Path) -> None:
    one = budget.estimate_bytes(1, k=8, draws=0, codec="plain")
    budget.require_space(one, tmp_path / "out")
    labels = budget.free_bytes(tmp_path / "out") // 8
    needed = budget.estimate_bytes(labels, k=8, draws=0, codec="plain")
    with pytest.raises(SoftshardsError, match="lower --k"):
        budget.require_space(needed, tmp_path / "out")


@pytest.mark.slow
def test_a_teacher_that_cannot_fit_is_refused_before_it_is_loaded(
    run_labeler: Run, teacher: Path, corpus: Path, tmp_path: Path
) -> None:
    asked = ["--model", teacher, "--out", tmp_path / "out", "--max-length", 64]
    done = run_labeler("label", corpus, *asked, "--max-batched-tokens", 10**11, code=2)
    assert "the teacher cannot fit" in done.stderr
    assert "make the logits smaller with --max-batched-tokens" in done.stderr
    done = run_labeler("label", corpus, *asked, "--kv-cache-gb", 10**6, code=2)
    assert "make the KV cache smaller with --kv-cache-gb" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["score", "generate"])
def test_calibration_measures_and_writes_nothing(
    run_labeler: Run, teacher: Path, corpus: Path, tmp_path: Path, mode: str
) -> None:
    prompts = ["--prompt-column", "text", "--max-tokens", "8"]
    asked = ["--model", teacher, "--out", tmp_path / "out", "--engine", "transformers"]
    asked += ["--max-length", 256, "--mode", mode, *prompts * (mode == "generate")]
    dry = ["--limit", 8, "--max-reject-share", 1, "--dry-run", "--calibrate", "--json"]
    done = run_labeler("label", corpus, *asked, *dry)
    plan = json.loads(done.stdout)
    work = plan["tokens"] + (plan["labels"] if mode == "generate" else 0)
    assert plan["estimated_seconds"] == pytest.approx(work / plan["tokens_per_s"], abs=0.51)
    assert plan["memory"]["weights"] > 0
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the flags of an x86 CPU")
def test_a_dtype_that_is_emulated_is_warned_of(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    emulates = not (torch.cuda.is_available() or {"avx512bw", "avx512vl", "avx512dq"} <= flags)
    for dtype, warned in (("float32", False), ("bfloat16", emulates)):
        config = settings(dtype=dtype)
        teacher, identity = identify_teacher(config, weights_digest="header")
        load_engine(teacher, config, identity, batched_tokens=256).close()
        assert ("emulates bfloat16" in capsys.readouterr().err) == warned


def test_calibration_needs_a_dry_run(
    labeler: CommandLine, teacher: Path, corpus: Path, tmp_path: Path
) -> None:
    done = labeler("label", corpus, *flags(teacher, tmp_path / "out"), "--calibrate")
    assert_one_error(done, "--calibrate needs --dry-run")
    assert not (tmp_path / "out").exists()


def test_a_unit_of_full_distributions_has_fewer_labels() -> None:
    assert budget.labels_per_unit(131_072, 64) == 131_072
    labels = budget.labels_per_unit(131_072, QWEN)
    assert labels * QWEN * 8 <= budget.UNIT_BYTES < (labels + 1) * QWEN * 8
    labels = budget.labels_per_unit(131_072, 64, states=4096)
    assert labels * (64 * 8 + 4096 * 4) <= budget.UNIT_BYTES
    assert labels > 60_000
