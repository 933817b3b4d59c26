"""A served teacher: a real vLLM server on 127.0.0.1, also used as an OpenAI-style one; faults."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer

from labeler.labeling.engines.served.server_checks import on_half_grid
from labeler.labeling.runs.label_run import label
from labeler.labelsets.verify.rescore import rescore_rows
from schemas import SoftshardsError, open_label_set, scan, validate_label_set
from schemas.journal import read_entry, read_rejects
from tests.fork_server import fork_server
from tests.labeler.conftest import Run, Settings
from tests.labeler.labeling.test_vllm_tensors import assert_student_has_the_generation
from tests.labeler.serving import PATIENCE, Server, free_port, proxy
from tests.recipes import run_recipe
from tests.tiny_model import TEXT, make_model, make_tokenizer

pytestmark = pytest.mark.vllm
MAX_LOGPROBS = 60


@pytest.fixture(scope="module")
def server(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests; the last one kills it and starts it with other settings."""
    started = Server(model=teacher, log=tmp_path_factory.mktemp("server") / "log")
    started.start("--max-logprobs", str(MAX_LOGPROBS))
    yield started
    started.kill()


@pytest.fixture
def flags(server: Server, teacher: Path) -> Callable[..., list[object]]:
    def make(out: Path, *more: object, url: str = server.url) -> list[object]:
        usual: list[object] = ["--model", teacher, "--k", "8", "--max-length", "64"]
        usual += ["--unit-labels", "300", "--engine", "served", "--server-url", url]
        pairs = zip(usual[::2], usual[1::2])
        kept = [part for pair in pairs if pair[0] not in more for part in pair]
        return ["--out", out, *kept, *more]

    return make


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text, "text": text}) + "\n" for text in TEXT))
    return path


@pytest.fixture
def student_prompts(tmp_path: Path) -> Path:
    path = tmp_path / "student_prompts.jsonl"
    rows = [{"prompt": text, "student_prompt": "the cat"} for text in TEXT]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def assert_labels_are_the_teachers(out: Path, teacher: Path) -> None:
    labels = open_label_set(out)
    assert list(validate_label_set(labels)) == []
    result = rescore_rows(labels, labels.rows, teacher, tolerance=1e-3, seed=0)
    assert result.good, result.verdict
    assert result.positions == labels.labels > 0


def test_scores_equal_the_reference(
    run_labeler: Run,
    flags: Callable[..., list[object]],
    teacher: Path,
    corpus: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    done = run_labeler("label", corpus, *flags(out, "--dry-run", "--json"))
    assert json.loads(done.stdout)["rows"] > 24, done.stderr
    assert not out.exists()
    run_labeler("label", corpus, *flags(out))
    assert_labels_are_the_teachers(out, teacher)
    assert open_label_set(out).manifest.identity.weights_scope == "served"
    entry = read_entry(out, 0)
    assert entry is not None
    assert entry.provenance["engine"] == "served"
    assert "vllm" in entry.provenance["engine_version"]
    again = run_labeler("label", corpus, *flags(out), "--json")
    assert json.loads(again.stdout)["units_labeled"] == 0


def test_generations_are_sampled_by_seed_and_labeled_at_temperature_1(
    run_labeler: Run,
    flags: Callable[..., list[object]],
    teacher: Path,
    student_prompts: Path,
    tmp_path: Path,
) -> None:
    sampled = ["--mode", "generate", "--max-tokens", "12", "--temperature", "1.3", "--top-p", "0.9"]
    for name in ("one", "two"):
        out = tmp_path / name
        run_labeler("label", student_prompts, *flags(out, *sampled, "--samples", "2"))
    assert_labels_are_the_teachers(tmp_path / "one", teacher)
    one, two = (scan(tmp_path / name).collect() for name in ("one", "two"))
    assert one["input_ids"].n_unique() == one.height == 2 * len(TEXT)
    assert one["input_ids"].equals(two["input_ids"])
    assert_student_has_the_generation(one)


def test_structured_output_is_labeled_without_its_constraint(
    run_labeler: Run,
    flags: Callable[..., list[object]],
    teacher: Path,
    student_prompts: Path,
    tmp_path: Path,
) -> None:
    more = ["--mode", "generate", "--max-tokens", "6", "--structured.regex", "[a-c]+"]
    run_labeler("label", student_prompts, *flags(tmp_path / "out", *more))
    frame = scan(tmp_path / "out").collect()
    assert all(re.fullmatch("[a-c]+", text) for text in frame["generation"])
    assert_student_has_the_generation(frame)
    assert_labels_are_the_teachers(tmp_path / "out", teacher)


def test_an_openai_style_server_gives_20_logprobs_matched_by_text(
    run_labeler: Run,
    flags: Callable[..., list[object]],
    teacher: Path,
    corpus: Path,
    prompts: Path,
    tmp_path: Path,
) -> None:
    scored, generated = tmp_path / "scored", tmp_path / "generated"
    run_labeler("label", corpus, *flags(scored, "--server-api", "openai", "--k", "64"))
    assert_labels_are_the_teachers(scored, teacher)
    identity = open_label_set(scored).manifest.identity
    assert identity.k == 20
    schema = pq.read_schema(next((scored / "shards").iterdir()))
    note = json.loads(schema.metadata[b"softshards"])["tail_source"]
    assert "OpenAI-style endpoint, top 20, matched by text" in note
    # Half of this tokenizer's tokens are bytes that decode to no text by themselves.
    widths = scan(scored).collect()["topk_ids"].explode().list.len()
    assert 0 < widths.min() < widths.max() <= 20

    more = ["--server-api", "openai", "--mode", "generate", "--max-tokens", "2"]
    more += ["--samples", "6", "--temperature", "1", "--max-reject-share", "1"]
    run_labeler("label", prompts, *flags(generated, *more))
    assert_labels_are_the_teachers(generated, teacher)
    rejects = read_rejects(generated).to_pylist()
    assert len(rejects) + open_label_set(generated).rows == 6 * len(TEXT)
    assert all("cannot be identified by its text" in reject["reason"] for reject in rejects)


def test_a_server_that_does_not_answer_or_gives_too_few_logprobs_is_refused(
    run_labeler: Run, flags: Callable[..., list[object]], corpus: Path, tmp_path: Path
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}/v1"
    done = run_labeler(
        "label", corpus, *flags(tmp_path / "out", "--retries", "0", url=nobody), code=2
    )
    assert "does not answer" in done.stderr
    assert "vllm serve" in done.stderr
    done = run_labeler("label", corpus, *flags(tmp_path / "out", "--k", MAX_LOGPROBS), code=2)
    assert f"greater than max allowed: {MAX_LOGPROBS}" in done.stderr
    assert "--max-logprobs 80" in done.stderr  # the teacher's head has 20 padding ids


def test_what_a_server_cannot_do_is_refused_before_the_start(
    server: Server, settings: Settings, prompts: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    text = ["completely different words make other merges", "zebra quagga yak xylophone"]
    make_model(other, vocab_size=make_tokenizer(other, text=text) + 20)
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"max_length": 128}, "context is 128 tokens(.|\n)*--max-model-len 129"),
        ({"served_model": "gpt"}, "no model 'gpt'(.|\n)*--served-model"),
        ({"model": other}, "the server's tokenizer is not the teacher's"),
        ({"server_url": server.url[:-3]}, "the server refuses: .*404(.|\\n)*/v1"),
        ({"server_api": "openai", "min_p": 0.1, "mode": "generate"}, "--min-p"),
        ({"engine_arg": {"swap-space": 1}}, "start the server with it"),
    ]
    for number, (changed, why) in enumerate(refusals):
        usual: dict[str, Any] = {"engine": "served", "server_url": server.url, "max_tokens": 8}
        usual["out"] = tmp_path / str(number)
        with pytest.raises(SoftshardsError, match=why):
            label([str(prompts)], settings(**(usual | changed)))


def test_lost_requests_are_retried_and_few_are_in_flight(
    run_labeler: Run,
    server: Server,
    flags: Callable[..., list[object]],
    teacher: Path,
    corpus: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"

    def lose_some(number: int, _: bytes) -> int:
        return 503 if number in (0, 1, 5, 6, 9) else 0

    # The two checks and their lost requests come one by one: numbers 0 to 3.
    with proxy(server.port, lose_some, gather=3, gather_from=4) as before:
        more = ["--concurrency", "3", "--retries", "4"]
        run_labeler("label", corpus, *flags(out, *more, url=before.url))
        rows = open_label_set(out).rows
        assert before.completions == 2 + rows + 5  # two checks, and the lost ones
        assert before.most == 3
        assert_labels_are_the_teachers(out, teacher)
    with proxy(server.port, lambda number, _: 503 if number > 5 else 0) as before:
        lost = flags(tmp_path / "lost", "--retries", "0", url=before.url)
        done = run_labeler("label", corpus, *lost, code=2)
    assert "the engine failed: the server refuses: lost on purpose" in done.stderr


@pytest.mark.parametrize("status", [400, 500])
def test_a_request_that_the_server_fails_on_becomes_a_reject(
    run_labeler: Run,
    server: Server,
    flags: Callable[..., list[object]],
    teacher: Path,
    tmp_path: Path,
    status: int,
) -> None:
    corpus = tmp_path / "in.jsonl"
    texts = [*TEXT, "@@@@"]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    out = tmp_path / "out"
    poison = AutoTokenizer.from_pretrained(teacher).encode("@@@@")

    def fault(_: int, body: bytes) -> int:
        return status if json.loads(body)["prompt"] == poison else 0

    with proxy(server.port, fault) as before:
        run_labeler("label", corpus, *flags(out, "--retries", "1", url=before.url))
    (reject,) = read_rejects(out).to_pylist()
    assert reject["id"] == "in.jsonl:5"
    assert "lost on purpose" in reject["reason"]
    assert open_label_set(out).rows == len(TEXT)
    assert_labels_are_the_teachers(out, teacher)


def test_rounded_logits_are_distinguished_from_float32() -> None:
    logits = torch.randn(40, 300, generator=torch.Generator().manual_seed(0)) * 4
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        rounded = logits.to(dtype).float()
        top = torch.log_softmax(rounded, -1).topk(8).values.double().numpy()
        assert on_half_grid(top) == (dtype != torch.float32)
    assert not on_half_grid(np.zeros((3, 1)))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_children")
def test_the_recipe_of_a_served_teacher(
    server: Server, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = {"TEACHER": str(teacher), "CHARS": "40", "LENGTH": "100"}  # the server's context: 128
    report = run_recipe("served.md", tmp_path, SERVER_URL=server.url, **small)
    assert report["verdict"]["student"] == "kd"
    for part, rows in ("train", 6), ("heldout", 3):
        labels = open_label_set(tmp_path / "served" / f"labels-{part}")
        assert (labels.rows, labels.manifest.identity.weights_scope) == (rows, "served")


def test_the_server_is_killed_and_the_same_command_resumes(
    run_labeler: Run,
    server: Server,
    flags: Callable[..., list[object]],
    settings: Settings,
    teacher: Path,
    prompts: Path,
    tmp_path: Path,
) -> None:
    """Last, because it kills the server of all tests; the next one's generations are refused."""
    corpus, out = tmp_path / "in.jsonl", tmp_path / "out"
    rows = [{"text": f"{i} " + " ".join(TEXT[i % 5 :])} for i in range(100)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    killed = threading.Event()

    def wait_for_the_kill(number: int, _: bytes) -> int:
        """After some units, no request passes while the server lives."""
        if number >= 60:
            killed.wait(PATIENCE)
        return 0

    more = ["--concurrency", "2", "--retries", "1"]
    with proxy(server.port, wait_for_the_kill) as before:
        process = fork_server("tests.labeler.preload").start(
            "labeler", "label", corpus, *flags(out, *more, url=before.url)
        )
        deadline = time.monotonic() + PATIENCE
        while before.completions < 60:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        server.kill()
        killed.set()
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "the engine failed: the server does not answer" in errors
    assert "Traceback" not in errors
    assert "never retrieved" not in errors
    finished = len(list(out.glob("journal/unit-*.json")))
    arguments = ["label", corpus, *flags(out, *more)]

    server.start("--max-logprobs", "-1", "--logprobs-mode", "processed_logprobs")
    resumed = run_labeler(*arguments, "--json")
    summary = json.loads(resumed.stdout)
    assert summary["units_reused"] == finished > 0
    assert summary["units_labeled"] > 0
    assert scan(out).collect()["id"].n_unique() == len(rows)
    assert_labels_are_the_teachers(out, teacher)

    for api in ("vllm", "openai"):
        usual = {"engine": "served", "server_url": server.url, "max_tokens": 8}
        config = settings(**usual, out=tmp_path / api, mode="generate", server_api=api)
        with pytest.raises(SoftshardsError, match="--logprobs-mode raw_logprobs"):
            label([str(prompts)], config)
