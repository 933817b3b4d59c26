"""What transformers says of a checkpoint is asked once, and again after any change of its files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from labeler.labeling.teacher.teacher import Teacher, open_teacher
from schemas.cache_folder import CACHE
from tests.labeler.command_line import CommandLine

FACTS = ("vocab_size", "context", "dtype", "stop_ids", "chat_template")


@pytest.fixture
def own(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the teacher, with an empty cache beside it."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return Path(shutil.copytree(teacher, tmp_path / "teacher"))


def facts(opened: Teacher) -> list[object]:
    return [getattr(opened, name) for name in FACTS]


def entries(own: Path) -> int:
    return len(list((own.parent / "cache" / "teachers").glob("*.json")))


def test_facts_are_those_of_the_checkpoint(own: Path) -> None:
    first = open_teacher(own, max_length=64)
    again = open_teacher(own, max_length=64)
    assert facts(again) == facts(first)
    assert entries(own) == 1
    assert len(again.tokenizer) == first.vocab_size
    assert again.tokenizer is again.tokenizer
    assert again.chat_template == again.tokenizer.chat_template


def set_json(file: Path, **values: object) -> None:
    content = json.loads(file.read_bytes()) if file.exists() else {}
    file.write_text(json.dumps(content | values))


def test_a_changed_file_is_read_again(own: Path) -> None:
    before = facts(open_teacher(own, max_length=8))
    set_json(own / "config.json", max_position_embeddings=99)
    assert open_teacher(own, max_length=8).context == 99
    set_json(own / "config.json", dtype="bfloat16")
    assert open_teacher(own, max_length=8).dtype == "bfloat16"
    set_json(own / "generation_config.json", eos_token_id=[2, 3])
    assert {2, 3} <= set(open_teacher(own, max_length=8).stop_ids)
    (own / "chat_template.jinja").write_text("{{ messages }}")
    assert open_teacher(own, max_length=8).chat_template == "{{ messages }}"
    assert entries(own) == 5
    assert facts(open_teacher(own, max_length=8)) != before


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b'{"vocab_size": "many"}', b"\xff"])
def test_a_damaged_cache_is_replaced(own: Path, damage: bytes) -> None:
    before = facts(open_teacher(own, max_length=8))
    (file,) = (own.parent / "cache" / "teachers").glob("*.json")
    file.write_bytes(damage)
    assert facts(open_teacher(own, max_length=8)) == before
    assert file.read_bytes() != damage


def test_a_cache_that_cannot_be_written_changes_nothing(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own.parent / "file").write_text("")
    monkeypatch.setenv(CACHE, str(own.parent / "file"))
    assert facts(open_teacher(own, max_length=8)) == facts(open_teacher(own, max_length=8))


def test_a_finished_set_needs_neither_torch_nor_transformers(
    labeler: CommandLine, own: Path, corpus: Path
) -> None:
    flags = ("--engine", "transformers", "--k", "4", "--max-length", "64", "--out", "set")
    assert labeler("label", corpus, "--model", own, *flags).code == 0
    program = (
        "import sys; from labeler.labeling.label_config import LabelConfig; "
        "from labeler.labeling.runs.label_run import label; from pathlib import Path; "
        f"done = label([{str(corpus)!r}], LabelConfig(model=Path({str(own)!r}), out=Path('set'), "
        "engine='transformers', k=4, max_length=64)); assert done.units_labeled == 0; "
        "print(sorted({'torch', 'transformers', 'vllm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
