"""Every page of docs/recipes runs as it stands, at a small size.

The one of a served teacher runs in tests/labeler/labeling/test_served.py, which has a server.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from schemas import open_label_set
from tests.recipes import FOLDER, run_recipe
from tests.tiny_model import TEXT, make_model, make_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_children")]
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}" + (
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with a chat template."""
    path = tmp_path_factory.mktemp("chatty") / "teacher"
    size = make_tokenizer(path, chat_template=TEMPLATE)
    make_model(path, vocab_size=size)
    return path


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_index_names_every_page() -> None:
    index = (FOLDER / "README.md").read_text()
    pages = [path.name for path in FOLDER.glob("*.md") if path.name != "README.md"]
    assert len(pages) == 5
    assert all(f"]({page})" in index for page in pages)


def test_a_specialist(chatty: Path, work: Path) -> None:
    report = run_recipe("specialist.md", work, TEACHER=str(chatty))
    assert (report["verdict"]["student"], report["verdict"]["control"]) == ("kd", "ce")
    ids = [
        json.loads(line)["id"] for line in Path("specialist/train.jsonl").read_text().splitlines()
    ]
    assert len(ids) == 6
    assert all(name.endswith(".py") for name in ids)


def test_a_chat_student(chatty: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = [[{"text": text}, {"text": "and?"}] for text in TEXT]
    chats = {f"talk-{i}": {"messages": talk[i % 3 : i % 3 + 3]} for i in range(12)}
    (work / "chitchat_dataset.py").write_text(f"def Dataset():\n    return {chats!r}\n")
    monkeypatch.setenv("PYTHONPATH", str(work))
    report = run_recipe("chat.md", work, TEACHER=str(chatty))
    assert report["verdict"]["student"] == "kd"
    labels = open_label_set("chat/answers-train")
    assert labels.rows == 6
    (group, *_) = labels.row_groups
    spans = labels.read_row_group(group, ["spans"])["spans"].to_pylist()
    assert {span["kind"] for row in spans for span in row} == {"answer"}


def test_a_pruned_teacher(chatty: Path, work: Path) -> None:
    report = run_recipe("pruned.md", work, TEACHER=str(chatty))
    assert report["verdict"]["student"] in ("layers", "narrow")
    shapes = [json.loads(Path(f"pruned/{n}/config.json").read_text()) for n in ("layers", "narrow")]
    assert [shape["num_hidden_layers"] for shape in shapes] == [1, 1]
    assert shapes[1]["intermediate_size"] < shapes[0]["intermediate_size"]


def test_on_policy_rounds(chatty: Path, work: Path) -> None:
    report = run_recipe("on_policy.md", work, TEACHER=str(chatty), ROWS="12", HELD_OUT="4")
    assert report["verdict"]["student"] == "on-policy"
    found = json.loads(Path("on_policy/rounds/rounds.json").read_text())
    assert [each["answers"] for each in found["rounds"]] == [4, 0]
    assert found["rounds"][0]["trained"]
