"""The online loop and the tables of `benchmarks.quality`, on a tiny teacher."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from benchmarks.quality.online import dense_kl, draw, train_online
from benchmarks.quality.table import T95, difference, markdown, summarize
from tests.trainer.build_label_set import build_label_set
from tests.trainer.conftest import World
from tests.trainer.running import config, log
from trainer.run_files import FINAL
from trainer.train.loop import train

SETTINGS: dict[str, Any] = {"packs_per_step": 1, "max_steps": 8, "loss": ("forward_kl=1",)}


@pytest.fixture(scope="module")
def nearly_dense(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of all ids but one, which is the tail: bucketed KL equals the dense one."""
    path = tmp_path_factory.mktemp("dense") / "labels"
    vocab = world.vocab_size
    return build_label_set(path, world.teacher, world.rows, vocab_size=vocab, k=vocab - 1)


def test_the_dense_online_loop_equals_the_offline_loop_on_labels_of_every_id(
    world: World, nearly_dense: Path, tmp_path: Path
) -> None:
    """With the same packs, order, schedule and optimizer, only the losses may differ."""
    runs = [config(world, tmp_path / n, labels=nearly_dense, **SETTINGS) for n in ("off", "on")]
    train(runs[0])
    train_online(runs[1], teacher=world.teacher, objective="dense")
    offline, online = (log(run.out) for run in runs)
    assert len(online) == 8
    for a, b in zip(offline, online, strict=True):
        assert [a[n] for n in ("step", "tokens", "labels", "lr")] == [
            b[n] for n in ("step", "tokens", "labels", "lr")
        ]
        for name in ("loss", "kl", "ce"):  # the stored labels are float16
            assert b[name] == pytest.approx(a[name], rel=2e-3)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-2)
    assert (runs[1].out / FINAL / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["dense", "sampled"])
def test_a_killed_online_run_resumes_the_same(
    world: World, tmp_path: Path, objective: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = (
        config(world, tmp_path / name, save_every=3, **SETTINGS) for name in ("whole", "cut")
    )
    train_online(whole, teacher=world.teacher, objective=objective)
    from benchmarks.quality import online

    real, taken = online._step, []

    def step_until_killed(*arguments: Any) -> Any:
        if len(taken) == 5:
            raise KeyboardInterrupt
        taken.append(1)
        return real(*arguments)

    monkeypatch.setattr(online, "_step", step_until_killed)
    with pytest.raises(KeyboardInterrupt):
        train_online(cut, teacher=world.teacher, objective=objective)
    monkeypatch.setattr(online, "_step", real)
    train_online(cut, teacher=world.teacher, objective=objective)
    assert log(cut.out) == log(whole.out)


def test_with_many_draws_sampled_training_follows_dense_training(
    world: World, tmp_path: Path
) -> None:
    runs = [config(world, tmp_path / name, **SETTINGS) for name in ("dense", "sampled")]
    train_online(runs[0], teacher=world.teacher, objective="dense")
    train_online(runs[1], teacher=world.teacher, objective="sampled", draws=3000)
    dense, sampled = (log(run.out) for run in runs)
    for a, b in zip(dense, sampled, strict=True):
        assert b["kl"] == pytest.approx(a["kl"], rel=5e-3)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=0.1)
        assert b["loss"] > a["loss"]  # a cross-entropy includes the teacher's entropy


def test_draws_follow_the_teacher_and_are_distinct() -> None:
    torch.manual_seed(0)
    teacher = (torch.randn(3, 40) * 2).log_softmax(1)
    ids, counts = draw(teacher, 20_000, torch.Generator().manual_seed(1))
    for row in range(3):
        known = ids[row] >= 0
        assert len(ids[row][known].unique()) == int(known.sum())
        assert int(counts[row].sum()) == 20_000
        assert not counts[row][~known].any()
        share = torch.zeros(40).scatter_(0, ids[row][known], counts[row][known] / 20_000)
        torch.testing.assert_close(share, teacher[row].exp(), atol=0.015, rtol=0)


def test_dense_kl_equals_the_formula() -> None:
    p, q = (torch.randn(5, 30, dtype=torch.float64).log_softmax(1) for _ in range(2))
    expected = (p.exp() * (p - q)).sum()
    torch.testing.assert_close(dense_kl(p, q), expected)


def test_t_quantiles() -> None:
    expected = [stats.t.ppf(0.975, n) for n in range(1, len(T95) + 1)]
    assert expected == pytest.approx(T95, abs=5e-4)


def rows(**kl: list[float]) -> list[dict[str, Any]]:
    return [
        {"loss": arm, "seed": seed, "kl": value, "ppl": 10.0, "agreement": 0.5, "ece": 0.1,
         "ce": 2.0 + value / 100}
        for arm, values in kl.items()
        for seed, value in enumerate(values)
    ]  # fmt: skip


def test_differences_are_paired_by_seed() -> None:
    """Seeds that differ far more than the arms do not hide that one arm is always better."""
    found = summarize(rows(ce=[1.0, 2.0, 3.0], kd=[0.90, 1.91, 2.89]))
    gap = found["differences"]["ce"]["kd"]["kl"]
    interval = stats.ttest_rel([0.90, 1.91, 2.89], [1.0, 2.0, 3.0]).confidence_interval(0.95)
    assert gap["mean"] == pytest.approx((interval.low + interval.high) / 2)
    assert gap["half_width"] == pytest.approx((interval.high - interval.low) / 2, rel=1e-3)
    assert gap["beyond_noise"]
    assert found["q1"] == {"lower_ppl_than_ce": False, "lower_kl_than_ce": True}
    assert found["arms"]["ce"]["kl"]["deviation"] == pytest.approx(1.0)
    noisy = summarize(rows(ce=[1.0, 2.0, 3.0], kd=[0.5, 2.4, 2.9]))
    assert noisy["q1"]["lower_kl_than_ce"] is False
    text = markdown({**found, "references": {}}, ["about"])
    assert "**-0.1000 ± 0.0248**" in text
    assert "lower kl than ce: yes" in text


def test_one_seed_tells_nothing_about_noise_and_worse_is_not_better() -> None:
    one = summarize(rows(ce=[1.0], kd=[0.5]))
    assert one["q1"]["lower_kl_than_ce"] is None
    assert "unknown from one seed" in markdown(one, [])
    worse = summarize(rows(ce=[1.0, 2.0], kd=[1.5, 2.5001]))
    assert worse["differences"]["ce"]["kd"]["kl"]["beyond_noise"]
    assert worse["q1"]["lower_kl_than_ce"] is False


def test_q2_is_relative_to_online() -> None:
    found = summarize(rows(kl=[0.6, 0.8], online=[0.5, 0.7]))["q2"]
    assert found["kl_percent"] == pytest.approx(100 * 0.1 / 0.6)
    assert found["ce_percent"] == pytest.approx(100 * 0.001 / 2.006)
    assert found["holds"]
    small = [row | {"state_bytes": 220.0} for row in rows(exact_kl_small=[0.601, 0.701])]
    exact = summarize([*rows(online=[0.6, 0.7]), *small])
    assert exact["exact"]["exact_kl_small"]["holds"]
    assert exact["exact"]["exact_kl_small"]["kl_percent"] == pytest.approx(100 * 0.001 / 0.65)
    text = markdown({**exact, "references": {}}, ["about"])
    assert "exact_kl_small (220 bytes of states per label) against online" in text
    far = [row | {"state_bytes": 220.0} for row in rows(exact_kl_small=[0.61, 0.71])]
    assert not summarize([*rows(online=[0.6, 0.7]), *far])["exact"]["exact_kl_small"]["holds"]
    assert math.isnan(difference({0: {"kl": 1.0}}, {1: {"kl": 1.0}}, "kl")["mean"])
