"""`labeler verify` must find and name every fault, and report none in good sets."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from labeler.cli import main
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.runs.label_run import label
from schemas import Labels, LabelSet, open_label_set
from schemas.fingerprint import sha256_json, weights_digest
from schemas.manifest import MANIFEST
from tests.labeler.forging import Change, relabel, reseal, rolled, shifted
from tests.tiny_model import CHAT_TEMPLATE, make_model, make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application")  # run in a test
Verify = Callable[..., tuple[int, dict[str, Any]]]
OTHER_TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Verify:
    """Run the command line in this process; return its exit code and --json output."""

    def run(*arguments: object) -> tuple[int, dict[str, Any]]:
        words = ["labeler", "verify", *map(str, arguments), "--json"]
        monkeypatch.setattr("sys.argv", words)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        code = stopped.value.code
        return int(code or 0), json.loads(printed.out or "{}") | {"stderr": printed.err}

    return run


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Callable[..., Path]:
    """Make a label set once per set of settings."""
    made: dict[str, Path] = {}
    root = tmp_path_factory.mktemp("built")

    def build(rows: list[dict[str, Any]], **changes: Any) -> Path:
        name = sha256_json([rows, {n: str(v) for n, v in changes.items()}])
        if name not in made:
            source = root / f"{name}.jsonl"
            source.write_text("".join(json.dumps(row) + "\n" for row in rows))
            defaults: dict[str, Any] = {"model": teacher, "engine": "transformers", "k": 8}
            defaults |= {"unit_labels": 300, "row_group_labels": 128, "max_length": 64}
            label([str(source)], LabelConfig(out=root / name, **(defaults | changes)))
            made[name] = root / name
        return made[name]

    return build


TEXTS = [
    {"id": f"doc{i}", "text": f"the cat {i} sat on the mat and the dog {i * 7} ran after it " * 2}
    for i in range(10)
]
CHATS = [
    {
        "id": f"chat{i}",
        "messages": [
            {"role": "user", "content": f"what did the cat {i} do on the mat"},
            {"role": "assistant", "content": f"the cat {i} sat and looked at the dog"},
        ],
    }
    for i in range(6)
]


@pytest.fixture
def texts(built: Callable[..., Path], tmp_path: Path) -> Callable[..., LabelSet]:
    """Return a copy of a set over TEXTS, to alter."""

    def copy(rows: list[dict[str, Any]] = TEXTS, **changes: Any) -> LabelSet:
        out = tmp_path / "labels"
        shutil.copytree(built(rows, **changes), out)
        return open_label_set(out)

    return copy


def change_labels(labels: LabelSet, change: Change, **options: Any) -> LabelSet:
    return reseal(labels, lambda table: relabel(table, change), **options)


def kinds(result: dict[str, Any]) -> set[str]:
    return {problem["kind"] for problem in result["problems"]}


def test_several_sets_are_verified_in_one_call(
    texts: Any,
    built: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good, bad = built(TEXTS), texts()
    shard = bad.path / bad.shards[0]
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")

    def run(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr("sys.argv", ["labeler", "verify", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code, *capsys.readouterr()

    code, printed, _ = run(good, bad.path, good, "--json")
    found = [json.loads(line) for line in printed.splitlines()]
    assert code == 1
    assert [one["path"] for one in found] == [str(good), str(bad.path), str(good)]
    assert [bool(one["problems"]) for one in found] == [False, True, False]
    code, printed, errors = run(bad.path, tmp_path / "none")  # refused before any is read
    assert (code, printed) == (2, "")
    assert "none" in errors


@pytest.mark.parametrize("codec", ["plain", "compact"])
def test_good_labels_are_confirmed(texts: Any, verify: Verify, codec: str) -> None:
    labels = texts(codec=codec)
    code, result = verify(labels.path, "--rescore", "all")
    assert (code, result["problems"], result["notes"]) == (0, [], [])
    assert result["rescore"]["rows"] == labels.rows == 10
    assert result["rescore"]["positions"] == labels.labels
    assert result["rescore"]["beyond_rounding"] < 1e-5
    assert result["rescore"]["argmax_agreement"]["0"] > 0.98  # ties may be in another order
    # Rewriting alone changes nothing: the faults below come from the changes.
    reseal(labels)
    assert verify(labels.path, "--rescore", 3)[0] == 0


@pytest.mark.parametrize("by", [-3, -1, 1, 2])
def test_naively_shifted_labels_are_named_without_a_model(
    texts: Any, verify: Verify, by: int
) -> None:
    labels = change_labels(texts(k=64), rolled(by))
    code, result = verify(labels.path)
    assert code == 1
    shifts = [problem for problem in result["problems"] if problem["kind"] == "shift"]
    assert shifts
    assert all(f"shifted by {-by:+d}" in problem["what"] for problem in shifts)
    assert "row doc" in shifts[0]["where"]


@pytest.mark.slow
@pytest.mark.parametrize(("by", "codec"), [(1, "plain"), (-1, "compact"), (3, "plain")])
def test_labels_shifted_without_contradiction_are_named_by_rescoring(
    texts: Any, verify: Verify, by: int, codec: str
) -> None:
    labels = change_labels(texts(k=400, codec=codec), shifted(by))
    assert verify(labels.path)[0] == 0  # nothing in the set contradicts them
    code, result = verify(labels.path, "--rescore", 4)
    assert code == 1
    (problem,) = result["problems"]
    assert problem["kind"] == "shift"
    assert f"shifted by {-by:+d}" in problem["what"]
    assert result["rescore"]["argmax_agreement"][str(-by)] > 0.9


def test_one_shifted_row_is_named(texts: Any, verify: Verify) -> None:
    change = shifted(1, only=lambda row: slice(None) if row["id"] == "doc7" else [])
    labels = change_labels(texts(k=400), change)
    code, result = verify(labels.path, "--rescore", "all")
    assert code == 1
    (problem,) = result["problems"]
    assert problem["where"].startswith("row doc7 (chunk 0, sample 0), positions 1 to ")
    assert "shifted by -1" in problem["what"]
    assert "all labels of 1 of 10 rows" in problem["what"]


def test_one_shifted_label_is_named(texts: Any, verify: Verify) -> None:
    change = shifted(-1, only=lambda row: [16] if row["id"] == "doc3" else [])
    labels = change_labels(texts(k=400), change)
    assert verify(labels.path)[0] == 0
    code, result = verify(labels.path, "--rescore", "all")
    assert code == 1
    (problem,) = result["problems"]
    assert problem["where"] == "row doc3 (chunk 0, sample 0), position 17"
    assert "shifted by +1" in problem["what"]


def test_shifts_in_spans_of_one_kind_are_named_as_such(texts: Any, verify: Verify) -> None:
    def answers(row: dict[str, Any]) -> list[int]:
        of = [s["kind"] for s in row["spans"] for _ in range(s["start"], s["stop"])]
        return [index for index, kind in enumerate(of) if kind == "answer"]

    labels = change_labels(texts(CHATS, k=400, spans="everything"), shifted(1, only=answers))
    code, result = verify(labels.path, "--rescore", "all")
    assert code == 1
    (problem,) = result["problems"]
    assert "shifted by -1" in problem["what"]
    assert "all of kind answer" in problem["what"]


def at_temperature(temperature: float) -> Change:
    """Rescale to softmax(z / T) over the whole vocabulary; the tail is the head's padding."""

    def change(row: dict[str, Any], labels: Labels) -> Labels:
        logs = np.concatenate([labels.topk_logprobs, labels.tail_logprob[:, None]], axis=1)
        scaled = logs / temperature
        scaled -= np.log(np.exp(scaled).sum(axis=1, keepdims=True))
        token = [row["input_ids"][t] for s in row["spans"] for t in range(s["start"], s["stop"])]
        hit = labels.topk_ids == np.array(token)[:, None]
        return Labels(
            topk_ids=labels.topk_ids,
            topk_logprobs=scaled[:, :-1],
            tail_logprob=scaled[:, -1],
            token_logprob=np.where(hit, scaled[:, :-1], 0).sum(axis=1),
        )

    return change


def test_another_temperature_is_named(texts: Any, verify: Verify) -> None:
    labels = change_labels(texts(k=400), at_temperature(2.0))
    assert verify(labels.path)[0] == 0
    code, result = verify(labels.path, "--rescore", 4)
    assert code == 1
    (problem,) = result["problems"]
    assert problem["kind"] == "temperature"
    assert "at temperature 2.00" in problem["what"]


def test_a_lost_tail_is_named(texts: Any, verify: Verify) -> None:
    def renormalized(_: dict[str, Any], labels: Labels) -> Labels:
        mass = np.log(np.exp(labels.topk_logprobs).sum(axis=1))
        token = np.where(
            labels.token_logprob < labels.topk_logprobs[:, -1], -15.0, labels.token_logprob - mass
        )
        return Labels(
            topk_ids=labels.topk_ids,
            topk_logprobs=labels.topk_logprobs - mass[:, None],
            tail_logprob=np.full(len(labels), np.log(1e-6), np.float32),
            token_logprob=token.astype(np.float32),
        )

    labels = change_labels(texts(), renormalized)
    assert verify(labels.path)[0] == 0
    code, result = verify(labels.path, "--rescore", 4)
    assert code == 1
    assert "the tail is lost" in result["problems"][0]["what"]


def test_wrong_tails_and_wrong_actual_tokens_are_named(texts: Any, verify: Verify) -> None:
    def more_tail(_: dict[str, Any], labels: Labels) -> Labels:
        tail = np.log(np.exp(labels.tail_logprob) + 9e-4)
        return dataclasses.replace(labels, tail_logprob=tail)

    def less_token(_: dict[str, Any], labels: Labels) -> Labels:
        outside = labels.token_logprob < labels.topk_logprobs[:, -1]
        return dataclasses.replace(labels, token_logprob=labels.token_logprob - 2.0 * outside)

    good = texts(k=296)
    assert kinds(
        verify(change_labels(good, more_tail).path, "--rescore", 4, "--tolerance", 1e-4)[1]
    ) == {"tail"}
    shutil.rmtree(good.path)
    code, result = verify(change_labels(texts(), less_token).path, "--rescore", 4)
    assert (code, kinds(result)) == (1, {"token"})


def test_another_teacher_is_named(texts: Any, verify: Verify, tmp_path: Path) -> None:
    """By its digest; or by its labels, if the digest is forged or unknown."""
    labels, other = texts(), tmp_path / "other"
    make_model(other, vocab_size=make_tokenizer(other, chat_template=CHAT_TEMPLATE) + 20, seed=5)
    code, result = verify(labels.path, "--model", other)
    assert (code, kinds(result)) == (1, {"teacher"})
    assert "wrong teacher: the digest of its weights is" in result["problems"][0]["what"]
    claims = {"weights": weights_digest(other), "provenance": {"teacher": str(other)}}
    code, result = verify(reseal(labels, **claims).path, "--rescore", 4)
    assert (code, kinds(result)) == (1, {"teacher"})
    assert "labels come from a different teacher" in result["problems"][0]["what"]
    reseal(open_label_set(labels.path), weights="0" * 64, weights_scope="served")
    code, result = verify(labels.path, "--rescore", 4)
    assert (code, kinds(result)) == (1, {"teacher"})


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """The teacher with a tokenizer of the same size, trained on other text."""
    path = tmp_path_factory.mktemp("foreign")
    shutil.copytree(teacher, path, dirs_exist_ok=True)
    text = [
        "quick brown foxes jump over lazy hounds while zebras gallop",
        "why vexing wizards quit",
    ]
    size = open_vocabulary(teacher)
    assert make_tokenizer(path, vocab_size=size, text=text, chat_template=CHAT_TEMPLATE) == size
    return path


def open_vocabulary(path: Path) -> int:
    content = json.loads((path / "tokenizer.json").read_text())
    return len(content["model"]["vocab"])


def test_another_tokenizer_is_named(
    texts: Any, verify: Verify, teacher: Path, foreign: Path
) -> None:
    """The set claims the teacher's ids, but another tokenizer made them."""
    labels = texts(model=foreign)
    code, result = verify(labels.path, "--model", teacher)
    assert (code, kinds(result)) == (1, {"tokenizer"})
    assert "wrong tokenizer: the digest of its tokenizer is" in result["problems"][0]["what"]
    claims = {"tokenizer": teacher, "provenance": {"teacher": str(teacher)}}
    code, result = verify(reseal(labels, **claims).path)
    assert (code, kinds(result)) == (1, {"tokenizer"})
    assert "wrong tokenizer: decoded and tokenized again" in result["problems"][0]["what"]


@pytest.mark.parametrize("form", ["prompt", "chat", "answer"])
def test_another_tokenizer_is_named_by_the_text_beside_the_ids(
    texts: Any, verify: Verify, teacher: Path, foreign: Path, form: str
) -> None:
    pairs = [{"id": r["id"], "prompt": r["text"], "completion": "the cat sat"} for r in TEXTS]
    more: dict[str, Any] = {"mode": "generate", "max_tokens": 4} if form == "answer" else {}
    more["max_length"] = 200
    labels = texts(
        {"prompt": pairs, "chat": CHATS, "answer": CHATS_TO_ANSWER}[form], model=foreign, **more
    )
    assert verify(labels.path, "--rescore", 2)[0] == 0
    labels = reseal(labels, tokenizer=teacher, provenance={"teacher": str(teacher)})
    code, result = verify(labels.path)
    assert (code, kinds(result)) == (1, {"tokenizer"})
    assert "wrong tokenizer: decoded" in result["problems"][0]["what"]


CHATS_TO_ANSWER = [row | {"messages": row["messages"][:1]} for row in CHATS]


@pytest.mark.parametrize("mode", ["score", "generate"])
def test_another_chat_template_is_named(
    texts: Any, verify: Verify, tmp_path: Path, mode: str
) -> None:
    """The set claims the teacher's template, but another one rendered its rows."""
    mine = tmp_path / "mine.jinja"
    mine.write_text(OTHER_TEMPLATE)
    more: dict[str, Any] = {"mode": "generate", "max_tokens": 4} if mode == "generate" else {}
    rows = CHATS_TO_ANSWER if mode == "generate" else CHATS
    labels = texts(rows, chat_template=mine, **more)
    code, result = verify(labels.path)  # the set records it
    assert (code, [n["kind"] for n in result["notes"]]) == (0, ["template"])
    claims = sha256_json([CHAT_TEMPLATE, {}])
    code, result = verify(reseal(labels, chat_template=claims).path)
    assert (code, kinds(result)) == (1, {"template"})
    assert "wrong chat template: the ids of 6 of 6 rows" in result["problems"][0]["what"]


def test_a_teacher_with_another_chat_template_is_named(
    texts: Any, verify: Verify, teacher: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    (other / "chat_template.jinja").write_text(OTHER_TEMPLATE)
    labels = texts(CHATS)
    assert verify(labels.path, "--model", teacher)[0] == 0
    code, result = verify(labels.path, "--model", other)
    assert (code, kinds(result)) == (1, {"template"})
    assert "wrong chat template" in result["problems"][0]["what"]


def test_arguments_of_the_template_are_recorded_and_used(
    texts: Any, verify: Verify, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.jinja"
    mine.write_text("{{ tone }}" + OTHER_TEMPLATE)
    labels = texts(CHATS, chat_template=mine, template_kwargs={"tone": "calm"})
    assert verify(labels.path)[0] == 0
    recorded = {"text": "{{ tone }}" + OTHER_TEMPLATE, "arguments": {"tone": "gruff"}}
    digest = sha256_json([recorded["text"], recorded["arguments"]])
    claims = {"chat_template": digest, "provenance": {"chat_template": recorded}}
    assert kinds(verify(reseal(labels, **claims).path)[1]) == {"template"}


def test_rows_with_tools_are_longer_and_good(texts: Any, verify: Verify, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jinja"
    mine.write_text("{% for t in tools or [] %}tool {{ t.name }}\n{% endfor %}" + OTHER_TEMPLATE)
    rows = [row | {"tools": [{"name": "cat"}]} for row in CHATS]
    code, result = verify(texts(rows, chat_template=mine).path)
    assert code == 0
    assert any("tools or documents" in note["what"] for note in result["notes"])


def test_rows_that_occur_twice(texts: Any, verify: Verify) -> None:
    """The same tokens under two keys are a note; the same key twice is a problem."""
    again = [{"id": "again", "text": TEXTS[4]["text"]}]
    labels = texts([*TEXTS, *again])
    code, result = verify(labels.path)
    assert (code, [note["kind"] for note in result["notes"]]) == (0, ["same-tokens"])
    assert "row again" in result["notes"][0]["what"]
    assert "row doc4" in result["notes"][0]["what"]

    def renamed(table: pa.Table) -> pa.Table:
        names = ["doc4" if name == "again" else name for name in table["id"].to_pylist()]
        return table.set_column(0, table.schema.field("id"), pa.array(names))

    code, result = verify(reseal(labels, renamed).path)
    assert (code, kinds(result)) == (1, {"duplicate"})
    assert "row doc4" in result["problems"][0]["where"]


def test_a_set_that_cannot_be_opened_is_a_finding_and_no_set_is_an_error(
    texts: Any, verify: Verify, tmp_path: Path
) -> None:
    labels = texts()
    code, result = verify(tmp_path / "nothing")
    assert (code, result["stderr"].startswith("error:")) == (2, True)
    assert verify(labels.path, "--rescore", 1, "--model", tmp_path / "gone")[0] == 2
    manifest = labels.path / MANIFEST
    whole = manifest.read_bytes()
    manifest.write_bytes(whole.replace(b'"complete"', b'"running"'))
    code, result = verify(labels.path)
    assert (code, kinds(result)) == (1, {"damage"})
    assert "labeler repair" in result["problems"][0]["hint"]
    manifest.write_bytes(whole)
    (labels.path / labels.manifest.index_pages[0].path).unlink()
    code, result = verify(labels.path)
    assert (code, kinds(result)) == (1, {"damage"})
    assert "index page is missing" in result["problems"][0]["what"]


def test_damage_is_found_before_labels_are_checked(texts: Any, verify: Verify) -> None:
    labels = texts()
    shard = labels.path / labels.shards[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    code, result = verify(labels.path, "--rescore", 2)
    assert (code, kinds(result)) == (1, {"damage"})
    assert result["rescore"] is None
    assert labels.shards[0] in result["problems"][0]["where"]
    assert result["problems"][0]["hint"]
