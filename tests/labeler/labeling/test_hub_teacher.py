"""`--model OWNER/NAME`: teachers from the stand-in Hub, through the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from tests.labeler.command_line import CommandLine, Outcome
from tests.labeler.hub import Hub
from tests.model_hub import contents, downloads, models, publish
from tests.tiny_model import CHAT_TEMPLATE, make_model, make_tokenizer

__all__ = ["models"]

NAME = "lab/teacher"
SMALL = ["--engine", "transformers", "--k", "8", "--max-length", "64", "--unit-labels", "300"]


@pytest.fixture
def commits(models: Hub, teacher: Path, tmp_path: Path) -> list[str]:
    """Publish the teacher and a later state of it with other weights; return the commits."""
    size = make_tokenizer(tmp_path / "later", chat_template=CHAT_TEMPLATE)
    make_model(tmp_path / "later", vocab_size=size + 20, seed=5)
    duplicate = {"consolidated.safetensors": b"x", "pytorch_model.bin": b"x"}
    return publish(models, NAME, contents(teacher) | duplicate, contents(tmp_path / "later"))


def good(labeler: CommandLine, *arguments: object) -> Outcome:
    done = labeler(*arguments)
    assert done.code == 0, done.err + done.out
    return done


def refused(labeler: CommandLine, *arguments: object) -> Outcome:
    done = labeler(*arguments)
    assert done.code == 2, done.err + done.out
    assert "Traceback" not in done.err
    return done


def manifest(folder: str) -> dict[str, Any]:
    return dict(json.loads(Path(folder, "manifest.json").read_bytes()))


@pytest.mark.slow
def test_labels_are_those_of_the_folder(
    labeler: CommandLine, commits: list[str], corpus: Path, teacher: Path, models: Hub
) -> None:
    old, new = commits
    given = [corpus, *SMALL]
    good(labeler, "label", *given, "--model", teacher, "--out", "local")
    done = good(labeler, "label", *given, "--model", NAME, "--revision", old, "--out", "set")
    assert f"{NAME}@{old}: downloading" in done.err
    assert not {"consolidated.safetensors", "pytorch_model.bin"} & set(downloads(models))
    found, local = manifest("set"), manifest("local")
    assert found["identity"] == local["identity"]
    assert found["provenance"]["teacher"] == NAME
    assert found["provenance"]["teacher_commit"] == old
    assert "teacher_commit" not in local["provenance"]
    # The same command finds it finished; a folder with these weights goes with it.
    good(labeler, "label", *given, "--model", NAME, "--revision", old, "--out", "set")
    good(labeler, "label", *given, "--model", teacher, "--out", "set")
    # Without a revision, a set keeps its commit although main is another one.
    done = good(labeler, "label", *given, "--model", NAME, "--out", "set")
    assert new not in done.err
    other = refused(labeler, "label", *given, "--model", f"{NAME}@main", "--out", "set")
    assert "weights" in other.err
    # The set names its teacher: no flag is needed, on any machine.
    good(labeler, "verify", "set", "--rescore", "2")
    good(labeler, "verify", "set", "--model", NAME)
    wrong = labeler("verify", "set", "--model", NAME, "--revision", "main")
    assert wrong.code == 1
    assert "wrong teacher" in wrong.out


def test_repair_takes_the_tokenizer_of_the_commit(
    labeler: CommandLine, commits: list[str], corpus: Path
) -> None:
    given = [corpus, *SMALL, "--model", NAME, "--revision", commits[0]]
    good(labeler, "label", *given, "--out", "set")
    Path("set/tokenizer/tokenizer.json").write_bytes(b"{}")
    assert labeler("verify", "set").code == 1
    good(labeler, "repair", "set")
    good(labeler, "verify", "set")


def test_preview_and_dry_run_download_no_weights(
    labeler: CommandLine, commits: list[str], corpus: Path, models: Hub
) -> None:
    good(labeler, "preview", corpus, "--model", NAME, "--max-length", "64")
    done = good(labeler, "label", corpus, *SMALL, "--model", NAME, "--out", "x", "--dry-run")
    assert "model.safetensors" not in downloads(models)
    assert f"{NAME}@{commits[1]}: 0.4 MB of weights are not downloaded yet" in done.err
    assert re.search(r"weights 3[78]\d\.\d KB", done.out)  # 0.4 MB of float32
    assert not Path("x").exists()


@pytest.mark.slow
def test_offline(
    labeler: CommandLine, commits: list[str], corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("label", corpus, *SMALL, "--model", NAME, "--out", "x")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "unset HF_HUB_OFFLINE" in refused(labeler, *given).err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    good(labeler, *given)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "from the cache" in good(labeler, *given[:-1], "y").err
    assert manifest("y")["provenance"]["teacher_commit"] == commits[1]


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("lab/techer", "check the name"),
        (f"https://huggingface.co/{NAME}", f"give its name: {NAME}"),
        (f"{NAME}@none", "check --revision"),
        ("techer", "OWNER/NAME of a model on the Hub"),
    ],
)
@pytest.mark.usefixtures("commits")
def test_wrong_names(labeler: CommandLine, corpus: Path, model: str, hint: str) -> None:
    for command in (["label", corpus, "--out", "x"], ["preview", corpus]):
        assert hint in refused(labeler, *command, "--model", model).err
