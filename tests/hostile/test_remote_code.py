"""Code of a checkpoint or a label set: run by one flag alone, never after a question."""

from __future__ import annotations

import ast
import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labeler.labeling.teacher.teacher import open_teacher
from labeler.labelsets.common.tokenizer_file import load_with_transformers, open_tokenizer
from labeler.labelsets.common.vocabulary import open_vocabulary
from schemas import SoftshardsError, open_label_set
from schemas.manifest import read_manifest
from tests.labeler.command_line import CommandLine
from tests.labeler.forging import reseal
from tests.schemas.sets import GOLDEN
from trainer.student.load_model import load_model, read_config

ROOT = Path(__file__).parents[2]
LOADERS = ("from_pretrained", "from_config")
CODE = """
from pathlib import Path
Path({marker!r}).write_text("ran")
from transformers import LlamaConfig, PreTrainedTokenizer
class Own(LlamaConfig):
    model_type = "own_code"
class OwnTokenizer(PreTrainedTokenizer):
    pass
"""


@pytest.fixture
def evil(tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a checkpoint whose every `auto_map` names code that leaves a mark; input says yes."""
    folder = tmp_path / "evil"
    shutil.copytree(teacher, folder)
    (folder / "own.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    maps = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    change(folder / "config.json", model_type="own_code", auto_map=maps)
    tokenizers = {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]}
    change(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=tokenizers)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    return folder


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


OPENERS: dict[str, Callable[[Path], object]] = {
    "teacher": lambda folder: open_teacher(folder, max_length=64),
    "tokenizer": load_with_transformers,
    "tokenizer without tokenizer.json": open_tokenizer,
    "vocabulary": lambda folder: open_vocabulary(folder, 300),
    "student": load_model,
    "new student": lambda folder: load_model(folder, from_config=True),
    "config": read_config,
}


@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS)
def test_no_code_runs(evil: Path, opener: Callable[[Path], object], tmp_path: Path) -> None:
    for change_more in ("", "tokenizer.json", "config.json"):
        (evil / change_more).unlink() if change_more else None
        with contextlib.suppress(SoftshardsError, ValueError, OSError):
            opener(evil)
        assert not (tmp_path / "ran").exists()


def test_the_trainer_says_what_it_does_not_run(evil: Path) -> None:
    with pytest.raises(SoftshardsError, match="needs code of its own") as caught:
        load_model(evil)
    assert caught.value.path == evil
    assert "trust_remote_code" not in str(caught.value)


@pytest.mark.parametrize("command", ["verify", "inspect", "view", "compare", "curate"])
def test_a_set_whose_tokenizer_is_code(
    command: str, evil: Path, tmp_path: Path, labeler: CommandLine
) -> None:
    shutil.copytree(GOLDEN, tmp_path / "set")
    (evil / "tokenizer.json").unlink()
    (evil / "vocab.json").write_text('{"a": 0}')
    (evil / "merges.txt").write_text("")
    out = reseal(open_label_set(tmp_path / "set"), tokenizer=evil).path
    shutil.copyfile(evil / "own.py", out / "tokenizer" / "own.py")
    more = {
        "compare": [out],
        "view": ["--out", tmp_path / "page.html"],
        "curate": ["--out", tmp_path / "good.view.json", "--where", "answer like '%a%'"],
    }
    ran = labeler(command, out, *more.get(command, []))
    assert ran.code in (0, 1, 2)
    assert "Traceback" not in ran.err
    assert not (tmp_path / "ran").exists()


def test_trust_is_recorded(
    labeler: CommandLine, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question"))
    (tmp_path / "a.jsonl").write_text('{"text": "some words to read"}\n')
    flags = ("--model", teacher, "--engine", "transformers", "--max-length", 64, "--k", 4)
    trust = ("--engine-arg.trust-remote-code", "true")
    assert labeler("label", "a.jsonl", *flags, "--out", "plain").code == 0
    assert labeler("label", "a.jsonl", *flags, *trust, "--out", "trusting").code == 0
    plain, trusting = (read_manifest(tmp_path / name) for name in ("plain", "trusting"))
    assert "trust_remote_code" not in plain.provenance
    assert trusting.provenance["trust_remote_code"] is True
    assert plain.identity == trusting.identity


def test_every_loader_says_whether_it_trusts() -> None:
    """Without `trust_remote_code`, transformers asks on a terminal."""
    checked = 0
    for folder in ("labeler", "trainer", "schemas", "scripts", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                    continue
                if node.func.attr in LOADERS:
                    names = [keyword.arg for keyword in node.keywords]
                    assert "trust_remote_code" in names, f"{path}:{node.lineno}"
                    checked += 1
    assert checked > 8
