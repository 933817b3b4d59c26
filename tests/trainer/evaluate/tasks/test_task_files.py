from __future__ import annotations

from pathlib import Path

import pytest

from schemas import SoftshardsError
from tests.trainer.evaluate.tasks.topics_task import YAML, write_task
from trainer.evaluate.tasks.task_files import TaskSpec, parse_tasks, read_task


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return write_task(tmp_path / "tasks", 8)


def test_names_and_files_are_told_apart(task: Path) -> None:
    found = parse_tasks([f"arc_easy, {task}", "arc_easy,"], allow_code=False)
    assert found[0] == TaskSpec("arc_easy")
    assert [(spec.name, spec.path) for spec in found[1:]] == [("topics", task)]
    assert len(found[1].digest) == 64


def test_data_lie_beside_the_file(task: Path) -> None:
    config = read_task(task, allow_code=False)
    data = str(task.parent / "topics.jsonl")
    assert config["dataset_kwargs"] == {"data_files": {"test": [data]}}


def test_the_digest_follows_content_and_not_the_folder(task: Path, tmp_path: Path) -> None:
    def digest(path: Path) -> str:
        return parse_tasks([str(path)], allow_code=False)[0].digest

    first = digest(task)
    moved = task.parent.rename(tmp_path / "moved") / task.name
    assert digest(moved) == first
    data = moved.parent / "topics.jsonl"
    data.write_text(data.read_text() + data.read_text().splitlines()[0] + "\n")
    changed = digest(moved)
    assert changed != first
    moved.write_text(YAML + "num_fewshot: 2\n")
    assert digest(moved) not in (first, changed)


def test_what_a_file_includes_counts(task: Path) -> None:
    outer = task.with_name("outer.yaml")
    outer.write_text("include: topics.yaml\ntask: outer\n")
    config = read_task(outer, allow_code=False)
    assert config["task"] == "outer"
    assert config["output_type"] == "multiple_choice"
    assert "include" not in config


CODE = {
    "a function": ('"{{start}}"', "!function code.run"),
    "a class": ("test_split: test", "test_split: test\nclass: !function code.run"),
    "unsafe code": ("test_split: test", "test_split: test\nunsafe_code: true"),
    "a prompt of a library": ("test_split: test", "test_split: test\nuse_prompt: promptsource:x"),
    "a reader that unpickles": ("dataset_path: json", "dataset_path: pandas"),
    "a folder": ("dataset_path: json", "dataset_path: ./data"),
    "a URL": ("topics.jsonl", "https://example.org/topics.jsonl"),
    "a chain of file systems": ("topics.jsonl", "reference::topics.jsonl"),
    "a metric of another library": ("metric: acc_norm", "metric: acc_norm\n    hf_evaluate: true"),
    "a folder's generate.py": (
        "test_split: test",
        "test_split: test\ngeneration_kwargs: {custom_generate: ./here, trust_remote_code: true}",
    ),
    "a builder's own code": ("dataset_kwargs:\n", "dataset_kwargs:\n  trust_remote_code: true\n"),
}


@pytest.mark.parametrize("kind", CODE)
@pytest.mark.parametrize("how", ["itself", "included", "member of a group"])
def test_a_file_that_may_run_code_is_refused(task: Path, kind: str, how: str) -> None:
    before, after = CODE[kind]
    assert before in YAML
    text = YAML.replace(before, after)
    outer = task
    if how == "included":
        task.write_text(text)
        outer = task.with_name("outer.yaml")
        outer.write_text("include: topics.yaml\ntask: outer\n")
    elif how == "member of a group":
        inner = text.replace("\n", "\n    ").strip()
        outer.write_text(f"group: all\ntask:\n  - {inner}\n")
    else:
        task.write_text(text)
    with pytest.raises(SoftshardsError, match="may run code") as caught:
        parse_tasks([str(outer)], allow_code=False)
    assert "--allow-task-code" in (caught.value.hint or "")


BROKEN = {
    "no mapping": ("- a\n- b\n", "no task"),
    "no name": (YAML.replace("task: topics", "tasks: topics"), "no task"),
    "not YAML": ("task: [", "cannot be read as YAML"),
    "no data": (YAML.replace("topics.jsonl", "other.jsonl"), "which is no file"),
    "data of another kind": (YAML.replace("test: topics.jsonl", "test: 3"), "no file"),
    "data unnamed": (
        YAML.replace("  data_files:\n    test: topics.jsonl\n", "  {}\n"),
        "must be named",
    ),
    "a circle": ("include: topics.yaml\n" + YAML, "in no circle"),
    "aliases without end": (
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefg", "bcdefgh"))
        + YAML,
        "aliases repeat",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named(task: Path, kind: str) -> None:
    text, reason = BROKEN[kind]
    task.write_text(text)
    with pytest.raises(SoftshardsError, match=reason) as caught:
        parse_tasks([str(task)], allow_code=False)
    assert caught.value.path == task


def test_a_missing_file_and_no_task_and_one_name_twice(task: Path, tmp_path: Path) -> None:
    with pytest.raises(SoftshardsError, match=r"nowhere\.yaml"):
        parse_tasks([str(tmp_path / "nowhere.yaml")], allow_code=False)
    with pytest.raises(SoftshardsError, match="names no task"):
        parse_tasks([" , "], allow_code=False)
    again = task.with_name("again.yaml")
    again.write_text(YAML)
    with pytest.raises(SoftshardsError, match="'topics' twice"):
        parse_tasks([f"{task},{again}"], allow_code=False)


def test_functions_are_named_where_code_is_allowed(task: Path) -> None:
    before = parse_tasks([str(task)], allow_code=True)[0].digest
    task.write_text(YAML.replace('"{{start}}"', "!function code.run"))
    code = task.with_name("code.py")
    code.write_text("def run(doc):\n    return doc['start']\n")
    first = parse_tasks([str(task)], allow_code=True)[0].digest
    code.write_text("def run(doc):\n    return doc['start'].upper()\n")
    second = parse_tasks([str(task)], allow_code=True)[0].digest
    assert len({before, first, second}) == 3
