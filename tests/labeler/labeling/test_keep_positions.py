"""`--keep-positions`: the labels that rules keep, their weights, and all that reads such sets."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.runs.keep_positions import choose_labels
from labeler.labeling.runs.label_dry_run import dry_run
from labeler.labeling.runs.label_run import label
from labeler.labelsets.common.rows import Rows
from labeler.labelsets.derive.convert import run_convert
from labeler.labelsets.derive.derive_config import ConvertConfig
from labeler.labelsets.inspect.summary import summarize
from labeler.labelsets.repair.diagnosis import diagnose
from labeler.labelsets.verify.rescore import rescore_rows
from labeler.labelsets.view.page_data import open_viewer
from schemas import SoftshardsError, decode, open_label_set, scan, validate_label_set
from schemas.arrow import COLUMN_ORDER
from schemas.hidden_part import state_columns
from schemas.kept_positions import LABEL_WEIGHTS, parse_rule
from schemas.labeled_spans import span_positions
from schemas.tempered_tails import TEMPERED_TAILS
from tests.labeler.command_line import CommandLine

Settings = Callable[..., LabelConfig]
Row = dict[str, Any]
ALL: dict[str, object] = {
    "draws": 5,
    "label_temperatures": (2.0,),
    "states": "final",
    "state_kl": 0,
}


def rows_of(folder: Path) -> dict[str, tuple[Row, Any]]:
    """Return each row of a set by id: its columns, and its labels."""
    labels, found = open_label_set(folder), {}
    layers = () if labels.states is None else labels.states.layers
    identity = labels.manifest.identity
    columns = [*COLUMN_ORDER, *state_columns(layers)]
    columns += [TEMPERED_TAILS] if identity.label_temperatures else []
    columns += [LABEL_WEIGHTS] if identity.has_weights else []
    for group in labels.row_groups:
        table = labels.read_row_group(group, columns)
        decoded = decode(table)
        for number, row in enumerate(table.drop(state_columns(layers)).to_pylist()):
            part = decoded.labels[slice(*decoded.offsets[number : number + 2])]
            found[f"{row['id']} {row['chunk']} {row['sample']}"] = row, part
    return found


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_samples_estimate_every_sum_without_bias(share: float) -> None:
    """Averaged over offsets, each label counts 1; p is written out here once more."""
    rng = np.random.default_rng(0)
    entropy = rng.gamma(0.4, 2.0, 60)
    p = share * (0.25 + 0.75 * entropy / entropy.mean())
    p = np.where(np.arange(60) == 0, 1.0, np.minimum(p, 1.0))
    offsets = (np.arange(4000) + 0.5) / 4000
    seen, counts = np.zeros(60), []
    for offset in offsets:
        kept, weights = choose_labels(parse_rule(f"sample {share}"), entropy, offset)
        assert weights is not None
        np.testing.assert_allclose(weights, 1 / p[kept], rtol=1e-6)
        seen[kept] += weights / len(offsets)
        counts.append(kept.sum())
    np.testing.assert_allclose(seen, 1.0, atol=1e-3 / share)
    assert p.sum() - 1 < min(counts) <= max(counts) < p.sum() + 1
    flat, _ = choose_labels(parse_rule("sample 0.5"), np.zeros(9), 0.5)
    assert flat.sum() == 5
    assert len(choose_labels(parse_rule("sample 0.5"), np.zeros(0), 0.5)[0]) == 0


def test_other_rules_keep_the_highest_entropies_and_the_first_label() -> None:
    entropy = np.array([0.1, 2.0, 0.3, 2.0, 1.6, 0.0])
    for rule, expected in (
        ("entropy>1.6", [0, 1, 3]),
        ("entropy > 9", [0]),
        ("top-share 0.2", [0, 1, 3]),  # a fifth of 6, rounded up; of equal ones the earlier
        ("top-share 0.1", [0, 1]),
    ):
        kept, weights = choose_labels(parse_rule(rule), entropy, 0.5)
        assert weights is None
        assert np.flatnonzero(kept).tolist() == expected, rule


@pytest.mark.parametrize("codec", ["plain", "compact"])
@pytest.mark.parametrize("rule", ["entropy>1.5", "top-share 0.2", "sample 0.3"])
def test_the_set_has_the_labels_of_a_full_one_at_the_positions_that_the_rule_keeps(
    corpus: Path, settings: Settings, tmp_path: Path, teacher: Path, rule: str, codec: str
) -> None:
    full = settings(out=tmp_path / "full", codec=codec, limit=10, **ALL)
    config = settings(out=tmp_path / "kept", codec=codec, limit=10, keep_positions=rule, **ALL)
    label([str(corpus)], full)
    label([str(corpus)], config)
    everything, found = rows_of(full.folder), rows_of(config.folder)
    assert found.keys() == everything.keys()
    for name, (row, labels) in found.items():
        whole, all_labels = everything[name]
        assert row["input_ids"] == whole["input_ids"]
        where, before = span_positions(row["spans"]), span_positions(whole["spans"])
        at = np.searchsorted(before, where)
        assert (before[at] == where).all()
        h, kept = all_labels.entropy, np.isin(np.arange(len(before)), at)
        assert kept[0]
        if rule.startswith("entropy"):  # stored entropies are rounded
            assert (kept == (h > 1.5))[1:][np.abs(h[1:] - 1.5) > 2e-3].all()
        elif rule.startswith("top"):
            assert 0 <= kept.sum() - np.ceil(len(h) / 5) <= 1
            assert h[kept][1:].min() > h[~kept].max() - 2e-3
        else:
            p = np.minimum(1, 0.3 * (0.25 + 0.75 * h / h.mean()))
            p[0] = 1
            np.testing.assert_allclose(labels.label_weights, 1 / p[at], rtol=4e-3)
            assert abs(len(at) - p.sum()) < 1.01
        ids = labels.topk_ids, all_labels.topk_ids[at]  # equal ones are in another order in compact
        np.testing.assert_array_equal(*(np.sort(each, axis=1) for each in ids))
        for field in ("token_logprob", "entropy", "tempered_tails", "states"):
            np.testing.assert_array_equal(getattr(labels, field), getattr(all_labels, field)[at])
        np.testing.assert_allclose(labels.tail_logprob, all_labels.tail_logprob[at])
        assert row["mean_entropy"] == pytest.approx(float(h[at].mean()), abs=2e-3)
    labels_ = open_label_set(config.folder)
    assert labels_.manifest.format_version == "1.2"
    assert list(validate_label_set(labels_)) == []
    facts = summarize(config.folder, labels_)
    assert (facts["keep_positions"], facts["label_temperatures"]) == (rule, [2.0])
    shown = open_viewer(config.folder).facts()["sets"][0]["late_settings"]
    assert shown == {"tails at temperatures": "2", "kept positions": rule}
    found_again = rescore_rows(labels_, 4, teacher, tolerance=2e-3, seed=0)
    assert found_again.good, found_again.verdict
    assert label([str(corpus)], config).units_labeled == 0
    with pytest.raises(SoftshardsError, match=r"keep_positions: here .*asked 'entropy>2'"):
        label([str(corpus)], dataclasses.replace(config, keep_positions="entropy>2"))
    other = "plain" if codec == "compact" else "compact"
    assert run_convert(ConvertConfig(config.folder, tmp_path / "converted", codec=other)) == 0
    assert rows_of(tmp_path / "converted").keys() == found.keys()
    frame = scan(tmp_path / "converted").labels.explode().collect()
    assert frame.height == labels_.labels
    if rule.startswith("sample"):
        assert frame[LABEL_WEIGHTS].min() == 1.0


def test_generations_keep_their_text_and_repair_their_plan(
    settings: Settings, tmp_path: Path, teacher: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": t}) + "\n" for t in ("the cat", "a dog")))
    config = settings(mode="generate", max_tokens=12, keep_positions="top-share 0.25")
    full = settings(out=tmp_path / "full", mode="generate", max_tokens=12)
    for each in (config, full):
        label([str(prompts)], each)
    whole, found = rows_of(full.folder), rows_of(config.folder)
    for name, (row, _) in found.items():
        assert row["generation"] == whole[name][0]["generation"]
        assert row["spans"][0]["start"] == whole[name][0]["spans"][0]["start"]
        assert row["n_labels"] in (3, 4)
    labels, everything = open_label_set(config.folder), open_label_set(full.folder)
    for column in ("repetition", "answer"):
        ours, theirs = (
            pl.concat([frame for _, frame in Rows(each).frames([column])])
            for each in (labels, everything)
        )
        assert ours.equals(theirs)
    plan = (config.folder / "plan.parquet").read_bytes()
    (config.folder / "plan.parquet").unlink()
    assert diagnose(config.folder, teacher).rebuilds_plan
    (config.folder / "plan.parquet").write_bytes(plan)


def test_a_lost_plan_is_not_rebuilt_without_the_labels_that_were_left_out(
    corpus: Path, settings: Settings, teacher: Path
) -> None:
    config = settings(limit=3, keep_positions="top-share 0.2")
    label([str(corpus)], config)
    before = (config.folder / "plan.parquet").read_bytes()
    (config.folder / "plan.parquet").unlink()
    assert not diagnose(config.folder, teacher).rebuilds_plan
    shutil.rmtree(config.folder / "shards")
    (config.folder / "shards").mkdir()
    label([str(corpus)], config)  # plans again, from the input
    assert (config.folder / "plan.parquet").read_bytes() == before


def test_the_students_context_has_the_same_labels(settings: Settings, tmp_path: Path) -> None:
    chats = tmp_path / "chats.jsonl"
    turns = [
        {"role": "system", "content": "labels are made once and many students learn from them"},
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": "sat on the mat and looked at the dog"},
        {"role": "user", "content": "a dog"},
        {"role": "assistant", "content": "ran after the cat, but the cat was faster"},
    ]
    chats.write_text(json.dumps({"messages": turns}) + "\n")
    config = settings(student_drop=("system",), keep_positions="top-share 0.4", max_length=256)
    label([str(chats)], config)
    ((row, labels),) = rows_of(config.folder).values()
    ours, theirs = span_positions(row["spans"]), span_positions(row["student_spans"])
    assert len(ours) == len(theirs) == len(labels)
    seen = [row["student_input_ids"][at] for at in theirs]
    assert seen == [row["input_ids"][at] for at in ours]
    assert len(row["student_spans"]) > 2
    assert list(validate_label_set(open_label_set(config.folder))) == []


def test_labeling_chosen_positions_again_says_so_or_is_refused(
    corpus: Path,
    settings: Settings,
    tmp_path: Path,
    labeler: CommandLine,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sampled = settings(out=tmp_path / "sampled", limit=3, keep_positions="sample 0.3")
    chosen = settings(out=tmp_path / "chosen", limit=3, keep_positions="top-share 0.2")
    for each in (sampled, chosen):
        label([str(corpus)], each)
    again = settings(out=tmp_path / "again")
    with pytest.raises(SoftshardsError, match=r"its labels are a sample .*'sample 0.3'"):
        label([str(sampled.out)], again)
    with pytest.raises(SoftshardsError, match="would choose among the labels"):
        label([str(chosen.out)], settings(out=again.out, keep_positions="top-share 0.5"))
    capsys.readouterr()
    labels = open_label_set(chosen.folder)
    plan = tmp_path / "dry.json"
    planned = labels.manifest.provenance["planned_labels"]
    facts = {"tokens": labels.tokens, "labels": planned, "keep_positions": "top-share 0.2"}
    plan.write_text(json.dumps(facts))
    for like in (plan, chosen.out):  # --like counts stored labels, as the measured bytes do
        found = json.loads(labeler("plan-cluster", chosen.out, "--like", like, "--json").out)
        unit = chosen.unit_labels * labels.labels / planned
        assert found["measured"]["labels_per_unit"] == pytest.approx(unit)
        assert found["plan"]["labels"] == labels.labels
        assert found["plan"]["units"] == np.ceil(planned / chosen.unit_labels)
    label([str(chosen.out)], again)
    assert "that --keep-positions 'top-share 0.2' kept are" in " ".join(
        capsys.readouterr().err.split()
    )
    labels = open_label_set(again.folder)
    assert labels.labels == open_label_set(chosen.folder).labels
    (parent,) = labels.manifest.provenance["parents"]
    assert parent["keep_positions"] == "top-share 0.2"


def test_estimates_and_refusals(corpus: Path, settings: Settings) -> None:
    found = dry_run([str(corpus)], settings(keep_positions="top-share 0.25"))
    whole = dry_run([str(corpus)], settings())
    assert found.labels == whole.planned.n_labels // 4 + whole.planned.rows
    assert found.bytes < whole.bytes / 2
    assert dry_run([str(corpus)], settings(keep_positions="entropy>1")).labels == whole.labels
    for bad in (
        *("entropy<1", "top-share 1.5", "top-share", "sample 0", "entropy>x", "half"),
        *("sample\u00a00.2", "sample\n0.2", "sample 0.9999999", "sample 1_0e-2"),
        "entropy>99.99999999",
    ):
        with pytest.raises(ValueError):  # noqa: PT011
            parse_rule(bad)
    for text in (" entropy > 1.5 ", "sample  0.25", "top-share 0.12345678"):
        assert parse_rule(str(parse_rule(text))) == parse_rule(text)
    assert parse_rule("sample 0.25").kind == "sample"
    with pytest.raises(SoftshardsError, match="--keep-positions needs the teacher's full"):
        settings(engine="vllm", capture="public", keep_positions="top-share 0.25")
