"""rounds.yaml and the prompts of each round."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from schemas import SoftshardsError
from trainer.rounds.command_steps import RoundFolder, answer_steps, train_steps
from trainer.rounds.prompt_files import write_prompts
from trainer.rounds.rounds_file import Rounds, read_rounds
from trainer.rounds.rounds_record import RECORD, RoundRecord, RoundsRecord
from trainer.rounds.run_rounds import _open_record, _stop_reason


def asked(**more: object) -> Rounds:
    given = {"teacher": "T", "student": "S", "prompts": "p.jsonl"} | more
    return Rounds.model_validate(given)


def measured(number: int, kl: float, *, trained: bool) -> RoundRecord:
    return RoundRecord(
        number=number, student="s", teacher_weights="", student_weights="", answers=1, kept=1,
        labels=1, bytes=1, kl=kl, trained=trained,
    )  # fmt: skip


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "it must have the keys"),
        ({"teacher": "T", "student": "S"}, "prompts: Field required"),
        ({"rounds": 0}, "rounds: Input should be greater"),
        ({"replay": 2}, "replay: Input should be less"),
        ({"nonsense": 1}, "nonsense: Extra inputs"),
        ({"mix": {"a": 0}}, "mix.a: Input should be greater"),
        ({"train": {"lrr": 1}}, "train: there is no flag lrr"),
        ({"train": {"lr": "much"}}, "train: "),
        ({"train": {"out": "x"}}, "train: the rounds set out themselves"),
        ({"filter": {"where": "true"}}, "filter: the rounds set where themselves"),
        ({"filter": {"materialize": "x"}}, "filter: the rounds set materialize themselves"),
        ({"train": {"pause-after": 3}}, "train: the rounds set pause-after themselves"),
        ({"generate": {"k": 4}}, "generate: k is 4, and the student is to name 16 ids"),
        ({"score": {"k": "many"}}, "score: k is 'many'"),
        ({"generate": {"ids-from": "x"}}, "generate: the rounds set ids-from themselves"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path: Path, content: object, said: str) -> None:
    base = {"teacher": "T", "student": "S", "prompts": "p"}
    full = base | content if isinstance(content, dict) and "teacher" not in content else content
    with pytest.raises(SoftshardsError) as refused:
        read_rounds(write(tmp_path / "rounds.yaml", full))
    assert said in str(refused.value)
    assert "rounds.yaml" in str(refused.value)


def test_defaults_yield_to_flags(tmp_path: Path) -> None:
    base = {"teacher": "T", "student": "S", "prompts": "p"}
    flags = {"train": {"loss": ["forward_kl=1"], "packs-per-step": 2}, "score": {"k": 8}}
    found = read_rounds(write(tmp_path / "rounds.yaml", base | flags))
    assert found.flags("train") == {
        "loss": ["forward_kl=1"],
        "lr": 5e-5,
        "save_dtype": "fp32",
        "packs_per_step": 2,
    }
    assert found.flags("score") == {"k": 8, "row_group_labels": 512}
    decisive = found.decisive()
    assert decisive == found.model_copy(update={"rounds": 9, "patience": 0}).decisive()
    assert decisive != found.model_copy(update={"seed": 9}).decisive()


def test_other_prompts_are_other_settings(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "a"}\n')
    given = asked(prompts=str(prompts))
    out = tmp_path / "out"
    record = RoundsRecord(settings=given.decisive(), rounds=[measured(0, 1.0, trained=True)])
    record.write(out / RECORD)
    assert len(_open_record(given, out).rounds) == 1
    prompts.write_text('{"prompt": "b"}\n')
    with pytest.raises(SoftshardsError, match="prompts_sha256"):
        _open_record(given, out)
    record.rounds[0].trained = False
    record.write(out / RECORD)
    assert not _open_record(given, out).rounds  # nothing was trained: begun again


def test_prompts_are_shared_out_and_kept_apart(tmp_path: Path) -> None:
    records = [{"prompt": f"what is {i}?", "tags": {"n": i}} for i in range(12)]
    lines = tmp_path / "p.jsonl"
    lines.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records) + "\n\n")
    table = tmp_path / "p.parquet"
    pl.DataFrame(records).write_parquet(table)
    found = []
    for path in (lines, table):
        given = asked(prompts=str(path), rounds=3, prompts_per_round=4, held_out=3)
        files = write_prompts(tmp_path / path.suffix[1:], given)
        assert [file.name for file in files] == [
            *(f"round-{i}.jsonl" for i in range(3)),
            "held-out.jsonl",
        ]
        found.append([[json.loads(x) for x in f.read_text().splitlines()] for f in files])
    assert found[0] == found[1]
    *learned, apart = found[0]
    assert [len(part) for part in found[0]] == [4, 4, 4, 3]
    ids = [r["id"] for part in learned for r in part]
    assert len(set(ids)) == 9  # all were used, then they start over
    assert all(r["id"].startswith("held-out/") for r in apart)
    null = tmp_path / "null.jsonl"
    null.write_text("".join(json.dumps(r | {"id": None}) + "\n" for r in records))
    (file, *_) = write_prompts(tmp_path / "n", asked(prompts=str(null), held_out=3))
    assert "None" not in file.read_text()
    assert not {r["prompt"] for r in apart} & {r["prompt"] for part in learned for r in part}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "0 different prompts"),
        ('{"prompt": "a"}\n{"prompt": "a"}\n', "1 different prompts"),
        ('{"prompt": "a", "id": "1"}\n{"prompt": "b"}\n', "two prompts have the id '1'"),
        ('{"a": 1}\n{', "line 2"),
        ("[1]\n", "not an object"),
        (None, "cannot be"),
    ],
)
def test_prompts_that_cannot_be_used(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "p.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SoftshardsError, match=said):
        write_prompts(tmp_path / "out", asked(prompts=str(path)))


def test_the_commands_of_a_round(tmp_path: Path) -> None:
    given = asked(replay=0.5, mix={"corpus": 2.0}, seed=4)
    here = RoundFolder(out=tmp_path, number=2)
    steps = [*answer_steps(given, here, (Path("a"), Path("b"))), *train_steps(given, tmp_path, 2)]
    assert [step.name for step in steps] == [
        *("generate", "hold-out", "filter", "score", "held-out-labels", "measure"),
        *("train-labels", "train"),
    ]
    student = str(tmp_path / "round-1/train/final")
    assert sum(student in step.arguments for step in steps) == 3
    train = steps[-1].arguments
    mixed = [train[i + 1] for i, text in enumerate(train) if text == "--mix"]
    assert mixed == [
        "corpus=2",
        f"{tmp_path}/round-0/train-labels.view.json=0.25",
        f"{tmp_path}/round-1/train-labels.view.json=0.5",
    ]
    assert "6" in steps[0].arguments
    last = RoundFolder(out=tmp_path, number=2, last=True)
    names = [step.name for step in answer_steps(given, last, (Path("b"),))]
    assert names == ["generate", "score", "measure"]


@pytest.mark.parametrize(
    ("kls", "patience", "rounds", "stops"),
    [
        ([], 1, 3, False),
        ([1.0], 1, 3, False),
        ([1.0, 0.9], 1, 3, False),
        ([1.0, 1.1], 1, 3, True),
        ([1.0, 1.1], 2, 3, False),
        ([1.0, 1.1, 1.0], 2, 3, True),
        ([1.0, 1.1, 1.2], 0, 3, False),
        ([1.0, 0.9, 0.8, 0.7], 1, 3, True),
    ],
)
def test_rounds_end_when_the_kl_falls_no_more(
    kls: list[float], patience: int, rounds: int, stops: bool
) -> None:
    made = [measured(i, kl, trained=i + 1 < len(kls)) for i, kl in enumerate(kls)]
    record = RoundsRecord(settings={}, rounds=made)
    reason = _stop_reason(asked(patience=patience, rounds=rounds), record)
    assert (reason is not None) == stops


def test_rounds_end_when_the_filter_leaves_nothing() -> None:
    record = RoundsRecord(settings={}, rounds=[measured(0, 1.0, trained=False)])
    record.rounds[0].kept = 0
    reason = _stop_reason(asked(), record)
    assert reason == "0 rounds: the filter left no answer of round 0"
