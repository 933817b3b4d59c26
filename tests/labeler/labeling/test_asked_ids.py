"""Ids that the input asks for and tails at further temperatures: label sets with them, dense."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from labeler.labeling.engines.capture import nucleus, without_asked
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.runs.label_run import label
from labeler.labelsets.repair.diagnosis import diagnose
from schemas import (
    PAD_ID,
    Labels,
    LabelSet,
    SoftshardsError,
    decode,
    open_label_set,
    validate_label_set,
)
from schemas.tempered_tails import read_temperatures
from tests.labeler.conftest import Run
from tests.tiny_model import TEXT, make_model

TEMPERATURES = (2.0, 0.5)


@pytest.fixture(scope="module")
def student(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the teacher's tokenizer and other weights."""
    folder = tmp_path_factory.mktemp("student")
    for file in teacher.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((teacher / "config.json").read_text())
    make_model(folder, vocab_size=config["vocab_size"], seed=5)
    return folder


@pytest.fixture(scope="module")
def answers(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text that the student labeled, top 6."""
    out = tmp_path_factory.mktemp("answers")
    (out / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXT))
    label([str(out / "text.jsonl")], reference(student, out / "set", k=6))
    return out / "set"


def reference(model: Path, out: Path, **more: object) -> LabelConfig:
    settings = {"k": 4, "max_length": 64, "engine": "transformers", **more}
    return LabelConfig(model=model, out=out, **settings)


@torch.inference_mode()
def require_dense(labels: LabelSet, teacher: Path, asked: LabelSet | None, count: int) -> int:
    """Compare ids, logprobs and tails with dense distributions; return the number of asked ids."""
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float64).eval()
    vocab, k = labels.manifest.identity.vocab_size, labels.manifest.identity.k
    wished = {}
    for group in asked.row_groups if asked is not None else ():
        rows = asked.read_row_group(group)
        wished |= dict(zip(rows["id"].to_pylist(), rows["topk_ids"].to_pylist(), strict=True))
    seen = 0
    for group in labels.row_groups:
        rows = labels.read_row_group(group)
        decoded = decode(rows)
        for number, row in enumerate(rows.to_pylist()):
            found = decoded.labels[slice(*decoded.offsets[number : number + 2])]
            where = [t for span in row["spans"] for t in range(span["start"], span["stop"])]
            logits = model(torch.tensor([row["input_ids"]])).logits[0][np.array(where) - 1]
            dense = logits.log_softmax(1).numpy()
            top = np.argsort(-dense[:, :vocab], axis=1)[:, :k]
            kept = np.zeros(dense.shape, bool)
            for at, ids in enumerate(found.topk_ids):
                stored = ids[ids != PAD_ID].tolist()
                extra = wished[row["id"]][at][:count] if wished else []
                assert set(stored) == {*top[at].tolist(), *extra}
                assert set(stored[:k]) == set(top[at].tolist())
                kept[at, stored] = True
                seen += len(stored) - k
            expected = np.take_along_axis(dense, np.maximum(found.topk_ids, 0), axis=1)
            real = found.topk_ids != PAD_ID
            np.testing.assert_allclose(found.topk_logprobs[real], expected[real], atol=0.04)
            tails = [found.tail_logprob, *(found.tempered_tails.T if count else ())]
            for temperature, tail in zip((1.0, *TEMPERATURES), tails):
                at_t = (logits / temperature).log_softmax(1).numpy()
                mass = np.where(kept, 0, np.exp(at_t)).sum(1)
                np.testing.assert_allclose(np.exp(tail.astype(float)), mass, rtol=1e-2)
    return seen


def flags(count: int) -> dict[str, object]:
    return {"ids_from": f"topk_ids:{count}", "label_temperatures": TEMPERATURES}


@pytest.mark.parametrize("codec", ["plain", "compact"])
def test_reference_labels_the_ids_that_a_student_finds_likely(
    teacher: Path, answers: Path, tmp_path: Path, codec: str
) -> None:
    config = reference(teacher, tmp_path / "out", codec=codec, **flags(3))
    label([str(answers)], config)
    labels, asked = open_label_set(tmp_path / "out"), open_label_set(answers)
    assert list(validate_label_set(labels)) == []
    assert labels.manifest.identity.ids_from == "topk_ids:3"
    assert labels.manifest.identity.width == 7
    (parent,) = labels.manifest.provenance["parents"]
    assert parent["identity_digest"] == asked.manifest.identity_digest
    assert require_dense(labels, teacher, asked, 3) > labels.labels
    again = label([str(answers)], config)
    assert again.units_labeled == 0


@pytest.mark.slow
def test_vllm_labels_them_too_whatever_the_step(
    run_labeler: Run, teacher: Path, answers: Path, tmp_path: Path
) -> None:
    """Prompts are longer than a step of 16 tokens."""
    out = tmp_path / "out"
    more = ["--ids-from", "topk_ids:3", "--label-temperatures", "2,0.5", "--k", "4"]
    settings = ["--max-length", "64", "--max-sequences", "8", "--max-batched-tokens", "16"]
    done = run_labeler("label", answers, "--model", teacher, "--out", out, *settings, *more)
    assert "public interface" not in done.stderr
    labels = open_label_set(out)
    assert list(validate_label_set(labels)) == []
    assert require_dense(labels, teacher, open_label_set(answers), 3) > labels.labels


def test_lists_of_other_inputs(teacher: Path, tmp_path: Path) -> None:
    """A record names ids beside its tokens; what does not fit becomes a reject."""
    good = {"input_ids": [5, 6, 7], "spans": [{"start": 1, "stop": 3}]}
    records = [
        good | {"id": "good", "mine": [[9, 9, 8], []]},
        good | {"id": "short", "mine": [[9]]},
        good | {"id": "outside", "mine": [[9], [10**6]]},
        good | {"id": "text", "mine": [["a"], []]},
        good | {"id": "none"},
        {"id": "plain", "text": "a dog", "mine": [[9]]},
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    config = reference(teacher, tmp_path / "out", ids_from="mine:2", max_reject_share=1.0)
    label([str(path)], config)
    labels = open_label_set(tmp_path / "out")
    (rows,) = (labels.read_row_group(g) for g in labels.row_groups)
    assert rows["id"].to_pylist() == ["good"]
    lists = rows["topk_ids"].to_pylist()[0]
    assert {8, 9} <= set(lists[0])
    assert len(lists[1]) == 4
    assert labels.manifest.totals is not None
    assert labels.manifest.provenance["plan_rejects"] == 5


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"ids_from": "topk_ids:3", "mode": "generate", "max_tokens": 8}, "--mode generate"),
        ({"ids_from": "topk_ids:3", "top_p_labels": 0.9}, "--top-p-labels"),
        ({"ids_from": "topk_ids:3", "engine": "vllm", "capture": "public"}, "--capture public"),
        ({"label_temperatures": (2.0,), "engine": "vllm", "capture": "public"}, "--capture public"),
    ],
)
def test_what_no_engine_can_follow_is_refused(
    teacher: Path, tmp_path: Path, more: dict[str, object], said: str
) -> None:
    with pytest.raises(SoftshardsError, match=said):
        reference(teacher, tmp_path, **more)


@pytest.mark.parametrize("text", ["1", "0", "-2", "2,2", "x", "inf", "nan", "1e9"])
def test_temperatures_that_are_none_are_refused(text: str) -> None:
    class Token:
        value = text

    with pytest.raises(SoftshardsError, match="label-temperatures"):
        read_temperatures(None, [Token()])


def test_ids_that_are_cut_move_to_all_tails() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 40)) * 3

    def logs(temperature: float) -> np.ndarray:
        scaled = logits / temperature
        return scaled - np.logaddexp.reduce(scaled, axis=1)[:, None]

    ids = np.argsort(-logits, axis=1)

    def made(k: int) -> Labels:
        tails = [
            np.log(np.exp(np.take_along_axis(logs(t), ids[:, k:], 1)).sum(1))
            for t in (1.0, *TEMPERATURES)
        ]
        return Labels(
            topk_ids=ids[:, :k].astype(np.int32),
            topk_logprobs=np.take_along_axis(logs(1.0), ids[:, :k], 1).astype(np.float32),
            tail_logprob=tails[0].astype(np.float32),
            token_logprob=np.zeros(5, np.float32),
            tempered_tails=np.stack(tails[1:], 1).astype(np.float32),
        )

    cut = nucleus(made(20), mass=0.0, min_k=4, temperatures=TEMPERATURES)
    expected = made(4)
    np.testing.assert_array_equal(cut.topk_ids, expected.topk_ids)
    assert cut.tempered_tails is not None
    np.testing.assert_allclose(cut.tempered_tails, expected.tempered_tails, rtol=1e-4)
    plain = without_asked(made(20), 4)
    np.testing.assert_allclose(plain.tail_logprob, expected.tail_logprob, rtol=1e-5)
    assert plain.tempered_tails is None


def test_a_lost_plan_is_planned_again_and_not_rebuilt_without_its_ids(
    teacher: Path, answers: Path, tmp_path: Path
) -> None:
    config = reference(teacher, tmp_path / "out", **flags(2))
    label([str(answers)], config)
    plan = tmp_path / "out" / "plan.parquet"
    content = plan.read_bytes()
    plan.unlink()
    assert not diagnose(tmp_path / "out", None).rebuilds_plan
    assert label([str(answers)], config).units_labeled == 0
    assert plan.read_bytes() == content
    assert open_label_set(tmp_path / "out").manifest.format_version == "1.2"


@pytest.mark.parametrize("ids_from", ["sample_ids:2", "nothing:2"])
def test_a_column_that_a_set_does_not_give(
    teacher: Path, answers: Path, tmp_path: Path, ids_from: str
) -> None:
    """Drawn ids are in the order of the vocabulary: the first ones are not the likeliest."""
    with pytest.raises(SoftshardsError, match="there is no column"):
        label([str(answers)], reference(teacher, tmp_path / "out", ids_from=ids_from))
