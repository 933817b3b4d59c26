"""Compare teachers: KL against the dense one, and the command on real label sets."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from labeler.labeling.engines.engine import Labeled, Request
from labeler.labeling.engines.transformers_engine import TransformersEngine
from labeler.labeling.rendering.spans import Span
from labeler.labeling.runs import label_run as run
from labeler.labeling.teacher.teacher import open_teacher
from labeler.labelsets.compare.compare_config import CompareConfig
from labeler.labelsets.compare.compare_report import run_compare
from labeler.labelsets.compare.comparison import compare_sets
from schemas import Labels, LabelSet, RowGroup, SoftshardsError, decode, open_label_set
from schemas.divergence import diverge
from tests.labeler.conftest import Run, Settings
from tests.tiny_model import CHAT_TEMPLATE, make_model, make_tokenizer

IDS = np.random.default_rng(0).integers(0, 250, 60).tolist()


@pytest.fixture(scope="module")
def other_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another random teacher, with the tokenizer of `teacher`."""
    path = tmp_path_factory.mktemp("other-teacher")
    vocab_size = make_tokenizer(path, chat_template=CHAT_TEMPLATE)
    make_model(path, vocab_size=vocab_size + 20, seed=1)
    return path


def labels_of(path: Path, k: int) -> Labels:
    """Return the reference engine's labels of IDS, before storage rounds them."""
    teacher = open_teacher(path, max_length=64)
    engine = TransformersEngine(teacher, dtype="float32", head_dtype="float32", k=k, sampling=None)
    span = Span(start=1, stop=len(IDS), kind="text")
    (outcome,) = engine.run([Request(index=0, sample=0, input_ids=IDS, spans=(span,), seed=0)])
    assert isinstance(outcome, Labeled)
    return outcome.labels


def dense_kl(a: Path, b: Path) -> np.ndarray:
    """Return KL(A||B) at every position of IDS but the first, over all ids, in float64."""
    logs = []
    for path in (a, b):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
        with torch.inference_mode():
            logs.append(torch.log_softmax(model(torch.tensor([IDS])).logits[0, :-1], dim=-1))
    return (logs[0].exp() * (logs[0] - logs[1])).sum(dim=-1).numpy()


def test_kl_is_dense_if_all_ids_are_stored_and_a_lower_bound_otherwise(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for seed, path in enumerate(paths):
        vocab_size = make_tokenizer(path)
        make_model(path, vocab_size=vocab_size, seed=seed)
    exact = dense_kl(*paths), dense_kl(*paths[::-1])
    assert exact[0].mean() > 0.5
    last: Any = 0.0
    for k in (1, 8, 64, vocab_size):
        found = diverge(labels_of(paths[0], k), labels_of(paths[1], k))
        for bound, dense in zip((found.a_to_b, found.b_to_a), exact, strict=True):
            assert (bound >= -1e-12).all()
            assert (bound <= dense + 1e-5).all()
        assert found.a_to_b.mean() > last  # more ids show more of it
        last = found.a_to_b.mean()
    np.testing.assert_allclose(found.a_to_b, exact[0], atol=1e-5)
    np.testing.assert_allclose(found.b_to_a, exact[1], atol=1e-5)


@pytest.mark.parametrize(("k_a", "k_b"), [(5, 40), (40, 5), (16, 16)])
def test_kl_is_over_the_common_ids_and_one_rest(
    teacher: Path, other_teacher: Path, k_a: int, k_b: int
) -> None:
    """Against dictionaries, one position at a time, from the full distributions."""
    full = labels_of(teacher, 280), labels_of(other_teacher, 280)
    found = diverge(labels_of(teacher, k_a), labels_of(other_teacher, k_b))
    for t in range(len(found.a_to_b)):
        p, q = (dict(zip(f.topk_ids[t], np.exp(f.topk_logprobs[t].astype(float)))) for f in full)
        common = set(full[0].topk_ids[t, :k_a]) & set(full[1].topk_ids[t, :k_b])
        assert found.common_mass[t] == pytest.approx(sum(p[i] for i in common), abs=1e-5)
        masses = [[d[i] for i in common] for d in (p, q)]
        a, b = (np.array([*mass, 1 - sum(mass)]) for mass in masses)
        assert found.a_to_b[t] == pytest.approx((a * np.log(a / b)).sum(), abs=1e-5)
        assert found.b_to_a[t] == pytest.approx((b * np.log(b / a)).sum(), abs=1e-5)


def test_shorter_lists_and_impossible_ids_give_finite_kl() -> None:
    """A nucleus leaves PAD_ID, a masked logit -inf; neither may give NaN."""
    inf = -np.inf
    a = Labels(
        topk_ids=np.array([[7, -1, -1], [3, 4, 5]], np.int32),
        topk_logprobs=np.log(np.array([[0.9, 0, 0], [1, 0, 0]]), where=[[1, 0, 0], [1, 0, 0]]),
        tail_logprob=np.array([np.log(0.1), inf], np.float32),
        token_logprob=np.array([np.log(0.9), inf], np.float32),
    )
    a.topk_logprobs[0, 1:] = a.topk_logprobs[1, 1:] = inf
    b = Labels(
        topk_ids=np.array([[2, 7], [3, 6]], np.int32),
        topk_logprobs=np.log(np.array([[0.5, 0.25], [0.5, 0.25]], np.float32)),
        tail_logprob=np.log(np.array([0.25, 0.25], np.float32)),
        token_logprob=np.log(np.array([0.25, 0.25], np.float32)),
    )
    found = diverge(a, b)
    first = 0.9 * np.log(0.9 / 0.25) + 0.1 * np.log(0.1 / 0.75)
    np.testing.assert_allclose(found.a_to_b, [first, np.log(2)], atol=1e-6)
    assert np.isfinite(found.b_to_a).all()
    np.testing.assert_array_equal(found.same_first, [False, True])


@pytest.fixture
def make_set(settings: Settings, tmp_path: Path, corpus: Path) -> Callable[..., Path]:
    """Label the corpus with the reference engine."""

    def make(name: str, *, source: Path = corpus, **changes: Any) -> Path:
        config = settings(out=tmp_path / name, **changes)
        run.label([str(source)], config)
        return config.out

    return make


@pytest.mark.slow
def test_two_teachers_over_the_same_rows(
    run_labeler: Run, make_set: Callable[..., Path], teacher: Path, other_teacher: Path
) -> None:
    a = make_set("a")
    b = make_set("b", model=other_teacher, k=16, unit_labels=900, seed=5, limit=20)
    done = run_labeler("compare", a, b, "--json", "--worst", 3)
    facts = json.loads(done.stdout)
    # The same figures from all labels by key: another order, other units, fewer rows.
    rows: list[dict[tuple[Any, ...], tuple[list[int], Labels]]] = []
    for labels in map(open_label_set, (a, b)):
        by_key = {}
        for group in labels.row_groups:
            table = labels.read_row_group(group)
            for row in range(table.num_rows):
                one = table.slice(row, 1)
                key = tuple(one[name][0].as_py() for name in ("id", "chunk", "sample"))
                by_key[key] = one["input_ids"][0].as_py(), decode(one).labels
        rows.append(by_key)
    both = sorted(set(rows[0]) & set(rows[1]))
    assert (facts["rows"], facts["only_a"], facts["only_b"], facts["other_tokens"]) == (
        len(both),
        len(rows[0]) - len(both),
        0,
        0,
    )
    assert facts["only_a"] > 0
    found = [diverge(rows[0][key][1], rows[1][key][1]) for key in both]
    kl = np.concatenate([one.a_to_b for one in found])
    assert facts["positions"] == len(kl)
    for name, value in (("mean", kl.mean()), ("median", np.median(kl)), ("max", kl.max())):
        assert facts["kl_a_to_b"][name] == pytest.approx(value)
    mass = np.concatenate([one.common_mass for one in found])
    assert facts["common_mass"] == pytest.approx(mass.mean())
    same = np.concatenate([one.same_first for one in found])
    assert facts["same_first"] == pytest.approx(same.mean())
    for side, by_key in zip(("a", "b"), rows, strict=True):
        nll = -np.concatenate([by_key[key][1].token_logprob for key in both]).astype(float)
        assert facts[side]["perplexity"] == pytest.approx(np.exp(nll.mean()))
    worst = facts["worst"]
    assert [line["kl"] for line in worst] == pytest.approx(np.sort(kl)[::-1][:3])
    tokenizer = open_teacher(teacher, max_length=64).tokenizer
    ids = rows[0][worst[0]["row"], worst[0]["chunk"], worst[0]["sample"]][0]
    assert worst[0]["token"] == tokenizer.decode(ids[worst[0]["position"]])
    assert tokenizer.decode(ids[: worst[0]["position"]]).endswith(worst[0]["context"])

    shown = run_labeler("compare", a, b).stdout
    assert "where B is farthest from A" in shown
    assert worst[0]["row"] in shown


@pytest.mark.slow
@pytest.mark.usefixtures("quick_children")
def test_settings_are_labeled_first_and_a_dtype_is_closer_than_another_teacher(
    run_labeler: Run,
    make_set: Callable[..., Path],
    tmp_path: Path,
    corpus: Path,
    teacher: Path,
    other_teacher: Path,
) -> None:
    settings = {"engine": "transformers", "k": 8, "max_length": 64, "model": teacher}
    for name, dtype in (("full", "float32"), ("half", "bfloat16")):
        lines = settings | {"out": tmp_path / name, "dtype": dtype}
        text = "".join(f"{key}: {value}\n" for key, value in lines.items())
        (tmp_path / f"{name}.yaml").write_text(text)
    sides = [tmp_path / "full.yaml", tmp_path / "half.yaml"]
    done = run_labeler("compare", *sides, corpus, "--rows", 6, "--json")
    half = json.loads(done.stdout)
    assert (half["a"]["dtype"], half["b"]["dtype"]) == ("float32", "bfloat16")
    assert half["rows"] == half["a"]["rows"] > 0
    full, stranger = tmp_path / "full", make_set("other", model=other_teacher, limit=6)
    other = compare_sets(open_label_set(full), open_label_set(stranger), worst=0)
    assert other.rows == half["rows"]
    assert 0 < half["kl_a_to_b"]["mean"] < other.kl_a_to_b.mean / 100
    assert half["same_first"] > other.same_first
    assert 0 < half["token_difference"]["mean"] < other.token_difference.mean


def test_a_set_against_itself_is_zero(make_set: Callable[..., Path]) -> None:
    labels = open_label_set(make_set("a"))
    found = compare_sets(labels, labels, worst=2)
    assert found.kl_a_to_b.max == found.kl_b_to_a.max == found.token_difference.max == 0
    assert found.same_first == 1
    assert found.positions == labels.labels


@pytest.mark.slow
def test_a_set_labeled_again_by_another_teacher_is_compared_whole(
    make_set: Callable[..., Path],
    other_teacher: Path,
    settings: Settings,
    tmp_path: Path,
) -> None:
    """Later chunks of a document get new ids, and name the rows they come from."""
    a = open_label_set(make_set("a"))
    assert any(chunk for group in a.row_groups for chunk in chunks(a, group))
    again = settings(model=other_teacher, out=tmp_path / "again")
    run.label([str(a.path)], again)
    found = compare_sets(a, open_label_set(again.out), worst=1)
    assert (found.only_a, found.only_b, found.other_tokens) == (0, 0, 0)
    assert (found.rows, found.positions) == (a.rows, a.labels)


def chunks(labels: LabelSet, group: RowGroup) -> list[int]:
    return labels.read_row_group(group, ["chunk"])["chunk"].to_pylist()


@pytest.mark.slow
def test_what_cannot_be_compared_is_refused(
    run_labeler: Run, make_set: Callable[..., Path], tmp_path: Path
) -> None:
    def refused(*sides: Path, inputs: Sequence[Path] = ()) -> str:
        config = CompareConfig(*sides, tuple(map(str, inputs)), rows=2, worst=1, as_json=True)
        with pytest.raises(SoftshardsError) as caught:
            run_compare(config)
        return str(caught.value)

    a = make_set("a", limit=3)
    stranger = tmp_path / "stranger"
    vocab_size = make_tokenizer(stranger, vocab_size=280)
    make_model(stranger, vocab_size=vocab_size)
    b = make_set("b", model=stranger, limit=3)
    assert "different tokenizers" in refused(a, b)
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"id": "doc0", "text": "another text under a known id"}) + "\n")
    other = make_set("other", source=text)
    assert "nothing to compare: of 1 rows in both" in refused(a, other)
    assert "no label set here" in refused(a, tmp_path / "none")
    settings = tmp_path / "s.yaml"
    settings.write_text("k: 4\n")
    assert "settings need inputs" in refused(a, settings)
    assert "label sets need no inputs" in refused(a, b, inputs=[text])
    assert "name no folder" in refused(a, settings, inputs=[text])
    settings.write_text("[")
    assert "cannot be read" in refused(a, settings, inputs=[text])
    settings.write_text(f"out: {tmp_path / 'x'}\nmodel: {tmp_path / 'gone'}\n")
    done = run_labeler("compare", a, settings, text, code=2)
    assert "failed with exit code 2" in done.stderr
    assert "Traceback" not in done.stderr
    assert "not a model" in done.stderr
