"""`labeler preview` shows the labeled tokens without loading an engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from labeler.labeling.label_config import PreviewConfig
from labeler.labeling.rendering import preview
from labeler.labeling.rendering.preview_command import PreviewCommand
from tests.labeler.chat_templates import STYLES, make_chat_teacher
from tests.labeler.command_line import CommandLine


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a teacher without weights."""
    return make_chat_teacher(tmp_path_factory.mktemp("qwen"), STYLES["qwen"])


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    answer = {"role": "assistant", "content": "[b]the\tcat[/b]\n", "reasoning_content": "hm"}
    question = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what?"}]
    rows = [
        {"id": "one", "messages": [*question, answer]},
        {"id": "two", "messages": question},
        {"id": "three", "text": "the cat"},
        {"id": "four", "text": "never shown"},
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_brackets_show_the_labeled_tokens(qwen: Path, chats: Path, labeler: CommandLine) -> None:
    done = labeler("preview", chats, "--model", qwen, "--student-drop", "system")
    assert done.code == 0, done.err
    out = done.out
    assert out.startswith("labeled: ⟦text⟧ ⟦answer⟧ ⟦thinking⟧ ")
    assert "one: " in out
    labeled = (
        "<|im_start|>assistant↵\n⟦thinking: <think>↵\nhm↵\n</think>↵\n↵\n⟧"
        "⟦answer: [b]the⇥cat[/b]↵\n<|im_end|>⟧↵\n"
    )
    assert out.count(labeled) == 2  # in the teacher's and in the student's chat
    teacher, student = out.split("the student sees")
    assert "be brief" in teacher
    assert "be brief" not in student
    assert "two: rejected: it has nothing to label with --spans assistant" in out
    assert "the⟦text:  cat⟧" in out
    assert "never shown" not in out
    assert not (Path.cwd() / "labels").exists()


def test_json_has_every_token_and_its_kind(qwen: Path, chats: Path, labeler: CommandLine) -> None:
    done = labeler("preview", chats, "--model", qwen, "--rows", 2, "--json")
    first, second = done.json
    reason = "it has nothing to label with --spans assistant; its roles: system, user"
    assert second == {"id": "two", "reject": reason}
    assert first["shape"] == "messages"
    tokens = first["tokens"]
    answer = "".join(token["text"] for token in tokens if token["kind"] == "answer")
    assert answer == "[b]the\tcat[/b]\n<|im_end|>"
    kinds = [token["kind"] for token in tokens]
    assert first["labels"] == {kind: kinds.count(kind) for kind in ("thinking", "answer")}
    assert kinds[0] is None


def test_prompts_end_where_the_answer_begins(qwen: Path, chats: Path, labeler: CommandLine) -> None:
    flags = ("--mode", "generate", "--max-tokens", 5, "--samples", 3, "--temperature", 1)
    done = labeler("preview", chats, "--model", qwen, *flags)
    assert done.code == 0, done.err
    assert "one: rejected: its last message is the assistant's" in done.out
    assert "at most 15 labels" in done.out
    assert "what?<|im_end|>↵\n<|im_start|>assistant↵\n⟦answer: ...⟧" in done.out


def test_a_terminal_shows_colors(
    qwen: Path, chats: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Console(force_terminal=True, color_system="standard", soft_wrap=True, no_color=False)
    monkeypatch.setattr(preview, "out", terminal)
    config = PreviewConfig(model=qwen, out=qwen)
    preview.run_preview(PreviewCommand((str(chats),), settings=config, rows=1))
    shown = capsys.readouterr().out
    assert "\x1b[30;42m[b]the⇥" in shown  # black on green: the answer
    assert "\x1b[30;43m<think>" in shown  # black on yellow: thinking
    assert "⟦" not in shown


def test_bad_input_is_one_error(qwen: Path, tmp_path: Path, labeler: CommandLine) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    done = labeler("preview", empty, "--model", qwen)
    assert done.code == 2
    assert "the input has no record" in done.err
    assert "Traceback" not in done.err
