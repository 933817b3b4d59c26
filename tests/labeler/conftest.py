from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from labeler.labeling.label_config import LabelConfig
from tests.fork_server import fork_server
from tests.labeler.command_line import CommandLine
from tests.tiny_model import CHAT_TEMPLATE, TEXT, make_model, make_tokenizer

Run = Callable[..., subprocess.CompletedProcess[str]]
Settings = Callable[..., LabelConfig]
REAL_TEACHER = Path(__file__).parents[2] / ".cache" / "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a tiny random teacher with a chat template and a head padded past its tokenizer."""
    path = tmp_path_factory.mktemp("teacher")
    vocab_size = make_tokenizer(path, chat_template=CHAT_TEMPLATE)
    make_model(path, vocab_size=vocab_size + 20)
    return path


@pytest.fixture(scope="session", autouse=True)
def _out_in_store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """With --out-in-store, what is written goes into the S3 service."""
    if not request.config.getoption("--out-in-store"):
        yield
        return
    from tests.out_in_store import out_in_store

    request.getfixturevalue("object_store")
    with out_in_store(tmp_path_factory.mktemp("states")) as faults:
        yield
    print(f"\n--out-in-store: {dict(sorted(faults.counts.items()))}")


@pytest.fixture(scope="session")
def real_teacher() -> Path:
    """Return SmolLM2-135M-Instruct, as scripts/get_teacher.py writes it."""
    assert (REAL_TEACHER / "config.json").is_file(), f"run scripts/get_teacher.py {REAL_TEACHER}"
    return REAL_TEACHER


@pytest.fixture(scope="session")
def viewed_sets(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Make the label sets of `tests.labeler.viewed`."""
    from tests.labeler.viewed import label_hostile_corpus

    return label_hostile_corpus(tmp_path_factory.mktemp("viewed"), teacher)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Write 24 short documents, some longer than the tests' --max-length."""
    path = tmp_path / "corpus.jsonl"
    rows = [{"id": f"doc{i}", "text": " ".join(TEXT[i % 5 :] * (1 + i % 4))} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def settings(teacher: Path, tmp_path: Path) -> Settings:
    """Return a function that makes settings of a small run with the reference engine."""

    def make(**changes: Any) -> LabelConfig:
        defaults: dict[str, Any] = {
            "model": teacher,
            "out": tmp_path / "labels",
            "engine": "transformers",
            "k": 8,
            "max_length": 64,
            "unit_labels": 300,
            "row_group_labels": 128,
        }
        return LabelConfig(**(defaults | changes))

    return make


@pytest.fixture
def labeler(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> CommandLine:
    """Return the command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return CommandLine(capsys, monkeypatch)


@pytest.fixture
def run_labeler() -> Run:
    """Return a function that runs `python -m labeler`; with `env`, in a fresh interpreter.

    It must end with `code`; None is any.
    """

    def run(
        *arguments: object,
        input: str = "",
        env: dict[str, str] | None = None,
        code: int | None = 0,
    ) -> subprocess.CompletedProcess[str]:
        if env is None:
            done = fork_server("tests.labeler.preload").run("labeler", *arguments, input=input)
        else:  # libraries read much of the environment when they are imported
            command = [sys.executable, "-m", "labeler", *map(str, arguments)]
            done = subprocess.run(
                command, input=input, env=env, capture_output=True, text=True, timeout=300
            )
        assert code in (None, done.returncode), done.stderr
        return done

    return run
