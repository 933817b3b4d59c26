from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from schemas import SoftshardsError
from tests.trainer.conftest import World
from trainer.evaluate.evaluate_config import EvaluateConfig
from trainer.evaluate.measure import evaluate
from trainer.report.build_report import report
from trainer.report.report_config import ReportConfig
from trainer.train.loop import train
from trainer.train.train_config import TrainConfig

NASTY = "<script>alert('$x$')</script>"


@pytest.fixture(scope="module")
def measured(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, its measurements and a bench file."""
    root = tmp_path_factory.mktemp("measured")
    train(
        TrainConfig(
            labels=world.labels, student=world.student, out=root / "kd", pack_tokens=128, epochs=2
        )
    )
    evaluate(
        EvaluateConfig(
            labels=world.labels,
            model=(world.student, root / "kd" / "final"),
            teacher=world.teacher,
            out=root / "eval.json",
        )
    )
    speeds = ((world.teacher, "teacher", 100.0), (root / "kd" / "final", "kd", 250.0))
    models = [
        {"model": str(p), "name": n, "score_tokens_per_s": 9.0, "generate_tokens_per_s": s}
        for p, n, s in speeds
    ]
    (root / "bench.json").write_text(json.dumps({"engine": {"name": "<vllm>"}, "models": models}))
    return root


@pytest.mark.slow
def test_report_shows_everything_and_escapes_it(
    world: World, measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    config = ReportConfig(
        eval=measured / "eval.json",
        bench=measured / "bench.json",
        run=(f"{NASTY}={measured / 'kd'}",),
        baseline=(f"untrained={world.student}",),
        labels=(world.labels,),
        title=NASTY,
        out=out,
    )
    assert report(config) == 0
    html = out.read_text()
    HTMLParser().feed(html)
    assert "<script" not in html
    assert NASTY not in html
    assert "&lt;vllm&gt;" in html
    assert "2.50×" in html  # 250 tokens/s against the teacher's 100
    metrics = json.loads((measured / "eval.json").read_text())["models"][1]["all"]
    assert f"{metrics['ppl']:,.2f}" in html
    assert f"{metrics['kl']:.4f}" in html
    assert f"<td>{metrics['ece']:.1%}</td>" in html
    low, high = json.loads((measured / "eval.json").read_text())["models"][1]["intervals"]["kl"]
    assert f"{low:.4f} to {high:.4f}" in html
    assert "minus &lt;script&gt;" in html  # the first trained run
    assert "and generates at 2.50× its speed" in " ".join(html.split())
    assert html.count("<svg") == 1
    assert "training tokens" in html
    identity = json.loads((world.labels / "manifest.json").read_text())["identity"]
    assert identity["weights"] in html
    assert identity["tokenizer"] in html
    # Self-contained: nothing is fetched (the addresses in the SVG are names of namespaces).
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)""", html)
    assert "@import" not in html
    table = capsys.readouterr().out
    assert "untrained" in table
    assert "2.50×" in table
    assert f"{metrics['ece']:.1%}" in table
    for text in (html, table):
        assert "ECE: how far the probability of the top token" in " ".join(text.split())


def test_the_same_inputs_give_the_same_report(measured: Path, tmp_path: Path) -> None:
    pages = []
    for name in ("a", "b"):
        report(
            ReportConfig(
                eval=measured / "eval.json", run=(f"kd={measured / 'kd'}",), out=tmp_path / name
            )
        )
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]


def test_a_model_that_moved_is_found_by_its_weights(measured: Path, tmp_path: Path) -> None:
    shutil.copytree(measured / "kd", tmp_path / "moved")
    config = ReportConfig(
        eval=measured / "eval.json", run=(f"kd={tmp_path / 'moved'}",), out=tmp_path / "r.html"
    )
    assert report(config) == 0


def test_a_model_that_was_not_measured_is_an_error(
    world: World, measured: Path, tmp_path: Path
) -> None:
    config = ReportConfig(
        eval=measured / "eval.json", baseline=(f"t={world.teacher}",), out=tmp_path / "r.html"
    )
    with pytest.raises(SoftshardsError, match=r"was not measured(.|\n)*trainer evaluate"):
        report(config)
    with pytest.raises(SoftshardsError, match="NAME=DIR"):
        report(ReportConfig(eval=measured / "eval.json", run=("kd",), out=tmp_path / "r.html"))


def test_a_figure_needs_matplotlib(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.report.layout.find_spec", lambda _: None)
    config = ReportConfig(
        eval=measured / "eval.json", run=(f"kd={measured / 'kd'}",), out=tmp_path / "r.html"
    )
    with pytest.raises(SoftshardsError, match=r"matplotlib(.|\n)*softshards\[report\]"):
        report(config)
