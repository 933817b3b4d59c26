"""Figures by kind, source, length and columns of the corpus; the worst group."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from schemas import LabelSetError, SoftshardsError, open_label_set
from tests.trainer.build_label_set import Row, build_label_set, random_rows
from tests.trainer.conftest import World
from tests.trainer.running import exit_code
from trainer.evaluate import grouping
from trainer.evaluate.bootstrap import to_text
from trainer.evaluate.evaluate_config import EvaluateConfig
from trainer.evaluate.evaluate_models import measure_models
from trainer.evaluate.evaluation_tables import differences_table, group_table, main_table
from trainer.evaluate.grouping import META, plan_groups
from trainer.evaluate.model_differences import COMPARED, differences
from trainer.evaluate.results import Group, MeasuredModel, Metrics
from trainer.evaluate.worst_group import worst_group

LANGUAGES = ["de", "en", "fr", None]


@dataclass(frozen=True)
class Corpus:
    """A set whose rows have languages: 35 documents each of two, a few of the others."""

    labels: Path
    rows: list[Row]


def language(number: int) -> str | None:
    return LANGUAGES[number % 2] if number < 70 else LANGUAGES[2 + number % 2]


@pytest.fixture(scope="module")
def corpus(world: World, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    rows = random_rows(76, world.vocab_size, seed=3, longest=20)
    for number, row in enumerate(rows):
        row.source = "a.jsonl" if number < 40 else None
        lang = language(number)
        meta: dict[str, object] = {"n": number % 2, "nested": {"odd": bool(number % 2)}}
        row.meta = json.dumps(meta | ({"lang": lang} if lang else {}))
    rows[0].input_ids = (rows[0].input_ids * 40)[:130]
    path = tmp_path_factory.mktemp("corpus") / "labels"
    size = world.vocab_size
    build_label_set(path, world.teacher, rows, vocab_size=size, max_length=256)
    return Corpus(path, rows)


def measured(
    corpus: Corpus, world: World, out: Path, *by: str
) -> tuple[MeasuredModel, MeasuredModel]:
    models = (world.student, world.teacher)
    _, found = measure_models(
        EvaluateConfig(labels=corpus.labels, model=models, out=out, by=by, worst=0)
    )
    return found[0][1], found[1][1]


def test_groups_add_up_to_the_whole(corpus: Corpus, world: World, tmp_path: Path) -> None:
    dimensions = ["meta.lang", "meta.n", "meta.nested.odd"]
    model, _ = measured(corpus, world, tmp_path / "eval.json", *dimensions)
    assert set(model.by) == {"kind", "source", "length", *dimensions}
    for name, groups in model.by.items():
        labels = [group.metrics.labels for group in groups]
        assert sum(labels) == model.all.labels, name
        for figure in ("ce", "kl", "agreement", "overlap", "acceptance"):
            values = [group.figure(figure) for group in groups]
            assert np.average(values, weights=labels) == pytest.approx(model.figure(figure))
        if name != "kind":  # a document has spans of two kinds, but is one row
            assert sum(group.documents for group in groups) == 76
    shown = {
        name: [(group.value, group.documents) for group in groups]
        for name, groups in model.by.items()
    }
    assert shown["meta.lang"] == [("de", 35), ("en", 35), ("fr", 3), (None, 3)]
    assert shown["meta.n"] == [("0", 38), ("1", 38)]
    assert shown["meta.nested.odd"] == [("false", 38), ("true", 38)]
    assert shown["source"] == [(None, 40 - 4), ("a.jsonl", 40)][::-1]
    assert shown["length"] == [("< 128", 75), ("128-511", 1)]
    odd = {row.id for number, row in enumerate(corpus.rows) if number % 2}
    expected = sum(row.n_labels for row in corpus.rows if row.id in odd)
    assert model.by["meta.n"][1].metrics.labels == expected


def test_the_worst_group_is_large_enough_and_has_an_interval(
    corpus: Corpus, world: World, tmp_path: Path
) -> None:
    model, teacher = measured(corpus, world, tmp_path / "eval.json", "meta.lang")
    de, en, fr, none = model.by["meta.lang"]
    worst = model.worst_groups["meta.lang"]
    chosen = max((de, en), key=lambda group: group.metrics.kl)
    assert (worst.value, worst.kl) == (chosen.value, chosen.metrics.kl)
    assert worst.interval == chosen.intervals["kl"]
    assert worst.interval[0] < worst.kl < worst.interval[1]
    assert (worst.compared, worst.too_small) == (2, 2)
    assert 0.3 < worst.share < 0.7  # the languages are random tokens: none is worse
    for group in (fr, none):
        assert not group.intervals
        assert not group.replicates
    assert "length" not in model.worst_groups  # one document is long
    # The difference of two models on a group is paired, as that on the whole set.
    better = differences(teacher.by["meta.lang"][0], de)["kl"]
    assert better.value == pytest.approx(teacher.by["meta.lang"][0].metrics.kl - de.metrics.kl)
    assert better.is_clear


def group(value: str | None, kl: float, documents: int, pooled: int | None = None) -> Group:
    zero = dict.fromkeys(("ce", "ppl", "agreement", "ece", "teacher_ce", "teacher_ppl"), 0.0)
    found = Group(
        value=value,
        documents=documents,
        pooled=pooled,
        metrics=Metrics(labels=10, kl=kl, **zero),
    )
    if documents >= 30:
        found.intervals["kl"] = (kl - 0.1, kl + 0.1)
        found.replicates["kl"] = to_text(np.random.default_rng(documents).normal(kl, 0.05, 500))
    return found


def test_small_and_pooled_groups_are_never_the_worst() -> None:
    groups = [group("a", 0.3, 50), group("b", 0.5, 40), group("c", 9, 29), group(None, 8, 90, 5)]
    worst = worst_group(groups)
    assert worst is not None
    assert (worst.value, worst.compared, worst.too_small) == ("b", 2, 1)
    assert worst.share > 0.95
    tied = worst_group([group("a", 0.5, 50), group("b", 0.5, 40)])
    assert tied is not None
    assert 0.3 < tied.share < 0.7
    assert worst_group(groups[1:]) is None
    assert worst_group([]) is None


def test_a_model_is_measured_again_for_a_new_division_or_length_of_lists(
    corpus: Corpus, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "eval.json"
    first, _ = measured(corpus, world, out)
    assert "reused" not in capsys.readouterr().err
    second, _ = measured(corpus, world, out, "meta.lang")
    assert "reused" not in capsys.readouterr().err
    assert set(second.by) - set(first.by) == {"meta.lang"}
    assert second.all == first.all
    measured(corpus, world, out, "source")
    assert capsys.readouterr().err.count("reused") == 2
    settings = {"labels": corpus.labels, "model": (world.student,), "out": out}
    _, [(_, other)] = measure_models(EvaluateConfig(**settings, top_k=2))
    assert "reused" not in capsys.readouterr().err
    assert set(other.by) == set(second.by)  # the division stays
    assert (other.top_k, second.top_k) == (2, 8)  # 8 ids are stored
    assert other.all.overlap != second.all.overlap
    content = json.loads(out.read_text())
    assert len(content["models"]) == 2


def test_values_with_few_rows_are_pooled(
    corpus: Corpus, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouping, "MAX_GROUPS", 2)
    model, _ = measured(corpus, world, tmp_path / "eval.json", "meta.lang")
    groups = model.by["meta.lang"]
    assert [(g.value, g.pooled, g.documents) for g in groups] == [
        ("de", None, 35),
        ("en", None, 35),
        (None, 2, 6),
    ]
    assert model.worst_groups["meta.lang"].too_small == 0


@pytest.mark.parametrize("name", ["lang", "meta", "meta.", "", "kinds"])
def test_unknown_divisions_are_refused(corpus: Corpus, world: World, name: str) -> None:
    with pytest.raises(SoftshardsError, match=f"--by {name}: there is no such division"):
        measured(corpus, world, Path("unused.json"), name)


def test_columns_that_no_row_has_are_refused(corpus: Corpus, world: World, tmp_path: Path) -> None:
    with pytest.raises(SoftshardsError, match=r"meta\.language: no row") as error:
        plan_groups(open_label_set(corpus.labels), [META + "language"])
    assert error.value.hint == "the rows have meta.n, meta.nested, meta.lang"
    with pytest.raises(SoftshardsError, match=r"meta\.lang: no row") as error:
        plan_groups(open_label_set(world.labels), [META + "lang"])
    assert error.value.hint == "the rows have no meta at all"
    rows = random_rows(2, world.vocab_size)
    rows[1].meta = "[1, 2]"
    build_label_set(tmp_path / "bad", world.teacher, rows, vocab_size=world.vocab_size)
    with pytest.raises(LabelSetError, match="not a JSON object") as error:
        plan_groups(open_label_set(tmp_path / "bad"), [META + "lang"])
    assert error.value.row == "row001 (chunk 0, sample 0)"


def test_tables_fit_a_terminal_of_80_columns(corpus: Corpus, world: World, tmp_path: Path) -> None:
    out = tmp_path / "eval.json"
    config = EvaluateConfig(
        labels=corpus.labels, model=(world.student, world.teacher), out=out, by=("meta.lang",)
    )
    results, models = measure_models(config)
    models = [(Path("runs/a-student-with-a-name"), model) for _, model in models]
    console = Console(width=80, record=True, file=(tmp_path / "shown").open("w"))
    path, model = models[0]
    console.print(main_table(models, results.teacher))
    console.print(differences_table(models))
    console.print(group_table(path, model, "meta.lang"))
    text = console.export_text()
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "…" not in text
    for figure in (f"{model.all.kl:.4f}", f"{model.all.bits_per_byte:.3f}", "worst meta.lang: "):
        assert figure in text
    half = (model.intervals["kl"][1] - model.intervals["kl"][0]) / 2
    assert f"±{half:.4f}" in text
    assert "no interval: fewer than 30 documents" in text


def test_the_command_prints_tables_and_json(
    corpus: Corpus, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["evaluate", "--labels", str(corpus.labels), "--out", str(tmp_path / "eval.json")]
    flags += ["--model", str(world.student), "--model", str(world.teacher), "--by", "meta.lang"]
    for more in ([], ["--json"]):
        assert exit_code([*flags, *more]) == 0
        shown = capsys.readouterr().out
        assert more or "by meta.lang" in " ".join(shown.split())
    pairs = [(pair["model"], pair["from"]) for pair in json.loads(shown)["differences"]]
    student, teacher = str(world.student), str(world.teacher)
    assert pairs == [(student, "teacher"), (teacher, "teacher"), (teacher, student)]
    figures = json.loads(shown)["differences"][2]["figures"]
    low, high = figures["kl"]["interval"]
    assert low <= figures["kl"]["value"] <= high < 0
    assert set(figures) == set(COMPARED)
