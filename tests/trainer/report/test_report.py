from __future__ import annotations

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from schemas import SoftshardsError
from tests.trainer.conftest import World
from tests.trainer.report.reported import Reported
from trainer.evaluate.evaluate_config import EvaluateConfig
from trainer.evaluate.evaluate_models import evaluate
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
    for text in (
        f"{metrics['ppl']:,.2f}",
        f"{metrics['kl']:.4f}",
        f"<td>{metrics['ece']:.1%}</td>",
    ):
        assert text in html
    low, high = json.loads((measured / "eval.json").read_text())["models"][1]["intervals"]["kl"]
    assert f"{low:.4f} to {high:.4f}" in html
    assert "minus &lt;script&gt;" in html  # without a run on tokens alone: the student itself
    assert html.count("<svg") == 3
    assert "Worst sequences" in html
    identity = json.loads((world.folder / "manifest.json").read_text())["identity"]
    assert identity["weights"] in html
    assert identity["tokenizer"] in html
    # Self-contained: nothing is fetched (the addresses in the SVG are names of namespaces).
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)""", html)
    assert "@import" not in html
    assert "trainer train --labels" in re.sub("</?span>", "", html)
    table = capsys.readouterr().out
    assert "untrained" in table
    assert "2.50×" in table
    assert f"{metrics['ece']:.1%}" in table
    assert "ship it? undecided" in table
    for text in (html, table):
        assert "ECE: how far the probability of the top token" in " ".join(text.split())
    markdown = (tmp_path / "report.md").read_text()
    assert NASTY not in markdown
    assert f"{metrics['kl']:.4f} ({low:.4f} to {high:.4f})" in markdown
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["models"][2]["metrics"]["kl"] == metrics["kl"]
    assert content["verdict"]["ship"] == "undecided"
    assert content["title"] == NASTY


def test_the_same_inputs_give_the_same_report(measured: Path, tmp_path: Path) -> None:
    pages = []
    for name in ("a", "b"):
        out = tmp_path / name / "report.html"
        out.parent.mkdir()
        run = (f"kd={measured / 'kd'}",)
        report(ReportConfig(eval=measured / "eval.json", run=run, out=out))
        pages.append(out.read_text().replace(str(out), "OUT"))
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


def test_without_matplotlib_the_report_has_no_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainer.report.layout.find_spec", lambda _: None)
    reported = Reported(tmp_path)
    reported.add("kd", ce=2.4)
    assert report(reported.config()) == 0
    assert "<svg" not in (tmp_path / "report.html").read_text()
    assert "softshards[report]" in capsys.readouterr().err


def test_odd_reports_are_whole(tmp_path: Path) -> None:
    """No run, one run, no bench, figures that are not finite or missing, names as markup."""
    for number, (names, bench) in enumerate(
        [([], True), (["kd"], False), (["a|b`c*d_<i>\n#", "teacher2"], True)]
    ):
        (root := tmp_path / str(number)).mkdir()
        reported = Reported(root)
        reported.add("untrained", ce=800.0, kl=math.inf, loss=None, speed=None)
        for name in names:
            reported.add(name, ce=math.nan if name == "teacher2" else 2.5)
        for model in reported.models:
            model.replicates = {}
            model.intervals = {}
            model.calibration = []
            model.worst = []
        assert report(reported.config(bench=bench)) == 0
        html = (root / "report.html").read_text()
        HTMLParser().feed(html)
        assert "nan" not in re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL).lower()
        rows = [r for r in (root / "report.md").read_text().splitlines() if r.startswith("| ")]
        table = [row for row in rows if row.count("|") - row.count("\\|") == 11]
        assert len(table) == 2 + len(names) + 1  # a heading, the teacher, the models
        json.loads((root / "report.json").read_text(), parse_constant=pytest.fail)
        content = reported.content()
        assert (content["verdict"] is None) == (not names)


def test_files_of_others_are_not_overwritten(tmp_path: Path) -> None:
    reported = Reported(tmp_path)
    reported.add("kd", ce=2.4)
    with pytest.raises(SoftshardsError, match="overwrite a file that it reads"):
        report(reported.config(out=tmp_path / "eval.html"))
    for name in ("notes.md", "notes.json"):
        (tmp_path / name).write_text("{}")
        with pytest.raises(SoftshardsError, match="did not write"):
            report(reported.config(out=tmp_path / "notes.html"))
        (tmp_path / name).unlink()
    config = reported.config()
    report(config)
    report(config)  # its own files it may write again
    (tmp_path / "report.md").write_text((tmp_path / "report.md").read_text() + "my note\n")
    with pytest.raises(SoftshardsError, match="did not write"):
        report(config)


def test_json_on_standard_output_is_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reported = Reported(tmp_path)
    reported.add("kd", ce=2.4)
    report(reported.config(json=True))
    assert capsys.readouterr().out == (tmp_path / "report.json").read_text()


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    reported = Reported(tmp_path)
    reported.add("kd", ce=2.4)
    with pytest.raises(SoftshardsError, match="from 0 to 1"):
        report(reported.config(keep=95))
    with pytest.raises(SoftshardsError, match=r"no --run of that name(.|\n)*runs are kd"):
        report(reported.config(student="ce"))
    reported.add("teacher", ce=2.4)
    with pytest.raises(SoftshardsError, match="stands for two models"):
        report(reported.config())


def test_prices_decide_what_is_saved(tmp_path: Path) -> None:
    reported = Reported(tmp_path)
    reported.add("kd", ce=2.4, speed=250.0)
    (tmp_path / "prices.yaml").write_text("currency: EUR\ndevices: {cpu: {per_hour: 0.36}}\n")
    report(reported.config(prices=tmp_path / "prices.yaml"))
    html = (tmp_path / "report.html").read_text()
    assert "EUR per" in html
    content = reported.content()
    models = {m["name"]: m for m in content["models"]}  # type: ignore[attr-defined]
    assert models["teacher"]["cost"] == pytest.approx(0.36 / 3600 / 100 * 1e6)
    assert models["kd"]["cost"] == pytest.approx(0.36 / 3600 / 250 * 1e6)
    assert content["verdict"]["answers"][1]["headline"] == "60%"  # type: ignore[index]


def test_unstable_speeds_decide_nothing(tmp_path: Path) -> None:
    """Rounds of 0.8 and 1.3 times the teacher's speed: faster in some, slower in others."""
    reported = Reported(tmp_path)
    reported.add("kd", ce=2.4, speed=130.0)
    config = reported.config()
    bench = json.loads((tmp_path / "bench.json").read_text())
    bench["models"][1]["generating"] |= {"rounds": [130.0, 82.0, 127.0], "spread": 0.38}
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    report(config)
    html = (tmp_path / "report.html").read_text()
    assert "not stable" in html
    checks = reported.content()["verdict"]["checks"]  # type: ignore[index]
    assert [check["status"] for check in checks][2] == "unknown"


def test_joules_that_were_estimated_are_marked(tmp_path: Path) -> None:
    reported = Reported(tmp_path)
    reported.add("kd", ce=2.4)
    config = reported.config()
    bench = json.loads((tmp_path / "bench.json").read_text())
    figure = {"median": 1.25, "spread": 0.0, "rounds": [1.25, 1.25]}
    bench["models"][0] |= {"joules_per_token": figure, "energy_source": "codecarbon 3"}
    bench["models"][1] |= {"joules_per_token": figure, "energy_source": "RAPL"}
    bench["models"][0]["energy_is_estimated"] = True
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    report(config)
    html = (tmp_path / "report.html").read_text()
    assert html.count("<small>estimated</small>") == 1
    assert "computed from constants by codecarbon 3" in html
    teacher, kd = (model["speed"] for model in reported.content()["models"])  # type: ignore[attr-defined]
    assert (teacher["joules_estimated_by"], kd["joules_estimated_by"]) == ("codecarbon 3", None)
    assert teacher["joules"]["value"] == kd["joules"]["value"] == 1.25
