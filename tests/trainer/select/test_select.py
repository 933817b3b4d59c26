from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from schemas import SoftshardsError, open_label_set
from tests.tiny_model import make_model, make_tokenizer
from tests.trainer.build_label_set import Row, build_label_set, random_rows
from tests.trainer.conftest import World
from tests.trainer.select.in_this_process import InThisProcess, Killed
from trainer.cli import main
from trainer.report.layout import has_matplotlib
from trainer.run_files import RESULT, checkpoint_folders
from trainer.select.run_select import select
from trainer.select.rungs import Rung
from trainer.select.select_config import SelectConfig
from trainer.select.select_file import Checks, read_select
from trainer.select.select_record import CandidateRecord, SelectRecord
from trainer.select.task_checks import coverage_warnings, set_facts, teacher_warnings
from trainer.select.train_rungs import Outcomes, _values
from trainer.sweep.trial_folder import read_stopped

BASE = {"pack_tokens": 128, "packs_per_step": 1, "window": 4, "eval_every": 1, "warmup": 1}


SETS = {"labels": "labels", "probe": "probe"}


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def read(out: Path) -> SelectRecord:
    return SelectRecord.read(out / "select.json", "a selection")


def trainer(*arguments: object) -> None:
    """Run a command of `trainer` that succeeds."""
    with pytest.raises(SystemExit) as stop:
        main([str(each) for each in arguments])
    assert stop.value.code == 0


def by_name(record: SelectRecord) -> dict[str, CandidateRecord]:
    return {each.name: each for each in record.candidates}


@dataclass(frozen=True)
class Selected:
    """A selection among six candidates, run to its end, and what trained."""

    root: Path
    probe: Path
    content: dict[str, Any]
    out: Path
    record: SelectRecord
    ran: list[tuple[str, int, int]]


@pytest.fixture(scope="module")
def probe_rows(world: World) -> list[Row]:
    return random_rows(8, world.vocab_size, seed=7)


@pytest.fixture(scope="module")
def selected(
    world: World, probe_rows: list[Row], tmp_path_factory: pytest.TempPathFactory
) -> Selected:
    root = tmp_path_factory.mktemp("selected")
    probe = build_label_set(root / "probe", world.teacher, probe_rows, vocab_size=world.vocab_size)
    make_tokenizer(root / "large")
    make_model(root / "large", vocab_size=world.vocab_size, layers=2, seed=3)
    other = make_tokenizer(root / "other", text=["quite another text, of other words"])
    make_model(root / "other", vocab_size=other, layers=1)
    student = str(world.student)
    content = {
        "base": BASE,
        "teachers": {"tiny": {"labels": str(world.labels), "probe": str(probe)}},
        "grid": {"student": {"s": student}, "lr": [3e-3, 3e-4, 1e-9]},
        "runs": [
            {"name": "diverging", "student": student, "lr": 1e30},
            {"name": "broken", "student": str(root / "other")},
            {"name": "large", "student": str(root / "large")},
        ],
        "budget": {"steps": 16, "factor": 2},
        "constraints": {"parameters": 70_000},
    }
    out, trainer = root / "out", InThisProcess()
    assert select(write(root / "select.yaml", content), SelectConfig(out=out), trainer) == 0
    return Selected(root, probe, content, out, read(out), trainer.ran)


def test_halving_finds_the_best_and_says_why_the_others_are_not(selected: Selected) -> None:
    found = by_name(selected.record)
    outcomes = {name: each.outcome for name, each in found.items()}
    assert outcomes == {
        "s_lr=0.003": "best",
        "s_lr=0.0003": "eliminated",
        "s_lr=1e-09": "eliminated",
        "diverging": "failed",
        "broken": "failed",
        "large": "ruled out",
    }
    assert found["diverging"].value is None  # what it was before does not rank it
    best = found["s_lr=0.003"]
    assert (selected.record.best, selected.record.metric) == ("s_lr=0.003", "kl")
    assert best.step == 16
    assert [step for step, _ in best.curve] == list(range(17))
    assert best.curve[0][1] == pytest.approx(best.untrained_kl or 0, rel=1e-4)
    assert best.curve[-1][1] < best.curve[0][1]
    assert (found["s_lr=1e-09"].step, found["s_lr=0.0003"].step) == (4, 8)
    assert found["s_lr=1e-09"].reason == "after step 4: rank 3 of 3, the next rung takes 2"
    # The last rung would take two, but the forecast of this one is hopeless.
    assert (found["s_lr=0.0003"].reason or "").startswith("after step 8: forecast ")
    assert "not finite" in (found["diverging"].reason or "")
    assert "tokenizer" in (found["broken"].reason or "")
    assert "parameters:" in (found["large"].reason or "")
    ranked = [each.name for each in selected.record.ranked()]
    assert ranked[:3] == ["s_lr=0.003", "s_lr=0.0003", "s_lr=1e-09"]
    assert ranked[-1] == "large"
    # From step 2 on (a step of warm-up), with five measurements at least: after step 8.
    assert [each.step for each in best.forecasts] == [8]
    assert best.forecasts[0].low < best.forecasts[0].value < best.forecasts[0].high


def test_a_rung_continues_the_one_before(selected: Selected) -> None:
    healthy = [each for each in selected.ran if each[0] not in ("diverging", "broken")]
    assert sorted(healthy) == [
        *(("s_lr=0.0003", 0, 4), ("s_lr=0.0003", 4, 8)),
        *(("s_lr=0.003", 0, 4), ("s_lr=0.003", 4, 8), ("s_lr=0.003", 8, 16)),
        ("s_lr=1e-09", 0, 4),
    ]
    rungs = selected.record.rungs
    assert [rung.step for rung in rungs] == [4, 8, 16]
    assert sum(rung.tokens for rung in rungs) == selected.record.tokens
    assert 0 < selected.record.share < 0.45
    stopped = read_stopped(selected.out / "trials" / "s_lr=1e-09")
    assert stopped is not None
    assert stopped.reason == "rank 3 of 3, the next rung takes 2"
    assert not checkpoint_folders(selected.out / "trials" / "s_lr=1e-09")


def test_the_report_and_the_tables(selected: Selected, capsys: pytest.CaptureFixture[str]) -> None:
    """A finished selection is read again without Ray, and trains nothing."""
    before = (selected.out / "select.json").read_bytes()
    page = (selected.out / "select.md").read_text()
    html = (selected.out / "select.html").read_text()
    trainer("select", selected.root / "select.yaml", "--out", selected.out)
    shown = capsys.readouterr()
    assert (selected.out / "select.json").read_bytes() == before
    for each in selected.record.candidates:
        assert each.name in shown.out
        assert each.name.replace("_", "\\_") in page
        assert each.name in html
    assert html.count("<svg") == has_matplotlib()
    assert "best: s_lr=0.003" in shown.out
    assert "eliminated: s_lr=1e-09: after step 4: rank 3 of 3" in shown.out
    assert "of training each candidate to the last step" in shown.out
    assert "starting Ray" not in shown.err


def test_the_ready_settings_train(selected: Selected) -> None:
    """They give the model that the selection has."""
    path = selected.out / "best.yaml"
    settings = yaml.safe_load(path.read_text())
    assert settings["out"] == str(selected.out / "best")
    trainer("train", "--config", path)
    again = json.loads((selected.out / "best" / RESULT).read_text())
    first = json.loads((selected.out / "trials" / "s_lr=0.003" / RESULT).read_text())
    assert again["facts"] == first["facts"]
    # Three rungs or one run: the same weights.
    assert again["files"] == first["files"]


def test_a_killed_selection_resumes(selected: Selected) -> None:
    """It ends alike; only the run whose checkpoint was not written yet is trained again."""
    out, file = selected.root / "killed", selected.root / "select.yaml"
    killed = InThisProcess(kill_at=3)
    with pytest.raises(Killed):
        select(file, SelectConfig(out=out), killed)
    assert killed.ran == selected.ran[:3]
    other = write(selected.root / "other.yaml", selected.content | {"base": BASE | {"clip": 2.0}})
    refusing = InThisProcess()
    with pytest.raises(SoftshardsError, match=r"trial s_lr=0.003: (.|\n)*clip: then 1.0, now 2.0"):
        select(other, SelectConfig(out=out), refusing)
    assert not refusing.ran
    assert not (out / "trials" / "s_lr=0.003" / "failed.json").exists()
    # A run is measured first, and then saved.
    shutil.rmtree(out / "trials" / "s_lr=0.003" / "checkpoints")
    resumed = InThisProcess()
    assert select(file, SelectConfig(out=out), resumed) == 0
    assert resumed.ran == [("s_lr=0.003", 4, 4), *selected.ran[3:]]
    record, expected = read(out), selected.record
    for found, wanted in zip(record.candidates, expected.candidates, strict=True):
        assert (found.outcome, found.curve) == (wanted.outcome, wanted.curve)
        assert found.forecasts == wanted.forecasts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": {"steps": 32, "factor": 2}}, r"rungs .*: here \[\(4, 5\), .*\(32, 2\)\]"),
        ({"budget": {"steps": 16, "factor": 3}}, r"rungs .*: here \[\(4, 5\), .*\(16, 2\)\]"),
        ({"constraints": {}}, "candidate large: here None, asked 'takes part'"),
        ({"runs": []}, "candidate diverging: here 'takes part', asked None"),
        ({"rank_by": "ce"}, "metric: here 'kl', asked 'ce'"),
        ({"base": BASE | {"clip": 2.0}}, "trial s_lr=0.003: (.|\n)*clip: then 1.0, now 2.0"),
    ],
)
def test_another_selection_in_the_same_folder_is_refused(
    selected: Selected, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """Otherwise eliminated candidates, whose runs were ended, could be wanted again."""
    file = write(tmp_path / "select.yaml", selected.content | change)
    runner, failed = InThisProcess(), set(selected.out.glob("trials/*/failed.json"))
    with pytest.raises(SoftshardsError, match=message):
        select(file, SelectConfig(out=selected.out), runner)
    assert not runner.ran
    assert set(selected.out.glob("trials/*/failed.json")) == failed


def test_another_probe_in_the_same_folder_is_refused(
    world: World, selected: Selected, tmp_path: Path
) -> None:
    """Curves are measured on one text."""
    rows = random_rows(4, world.vocab_size, seed=6)
    probe = build_label_set(tmp_path / "probe", world.teacher, rows, vocab_size=world.vocab_size)
    sets = {"labels": str(world.labels), "probe": str(probe)}
    file = write(tmp_path / "select.yaml", selected.content | {"teachers": {"tiny": sets}})
    with pytest.raises(SoftshardsError, match="probe of tiny: here '"):
        select(file, SelectConfig(out=selected.out), InThisProcess())


def test_a_run_that_was_ended_is_not_recorded_as_failed(selected: Selected, tmp_path: Path) -> None:
    asked = read_select(selected.root / "select.yaml", tmp_path)
    trial = asked.candidates[0].trial
    trial.folder.mkdir(parents=True)
    (trial.folder / RESULT).write_text("{}")
    found = Outcomes()
    assert not _values([trial], Rung(step=4, candidates=1), "kl", found)
    assert found.failed == {trial.name: "its run ended without a measurement after step 4"}
    assert not (trial.folder / "failed.json").exists()


def test_the_dry_run_shows_candidates_constraints_and_cost(
    selected: Selected, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = 10_000.0
    content = selected.content | {
        "budget": {"tokens": tokens, "factor": 2},
        "base": BASE | {"warmup": 10, "schedule_args": {"min_lr_ratio": 0.1}},
        "constraints": {"parameters": 70_000, "reading": 10},
        "slices": {"cut": {"teacher": str(selected.root / "large"), "keep": 1}},
        "grid": {"student": ["cut"], "lr": [1e-3, 1e-4]},
    }
    file = write(tmp_path / "select.yaml", content)
    flags = ["select", str(file), "--out", str(tmp_path / "out"), "--dry-run", "--tflops", "1"]
    trainer(*flags, "--json")
    shown = capsys.readouterr()
    record = SelectRecord.model_validate_json(shown.out)
    found = by_name(record)
    assert found["large"].outcome == "ruled out"
    cut, large = found["cut_lr=0.001"], found["large"]
    assert cut.outcome == "candidate"
    assert cut.parameters is not None
    assert large.parameters is not None
    assert 0 < cut.parameters < large.parameters  # a student that is not sliced yet
    assert [rung.candidates for rung in record.rungs] == [4, 2, 2]
    assert 0.6 * tokens < record.tokens <= tokens
    decay = round(0.2 * record.rungs[-1].step)
    assert cut.settings["schedule_args"] == {"num_decay_steps": decay, "min_lr_ratio": 0.1}
    assert all(rung.disk and rung.pflop and rung.hours for rung in record.rungs)
    assert "coverage is low" in shown.err
    assert "constraints.reading cannot be checked for 4 of 4 candidates" in shown.err
    first = record.rungs[0].step
    assert f"the first rung ends after step {first}, in the warm-up of the learning" in shown.err
    assert not (tmp_path / "out").exists()
    trainer(*flags)
    shown = capsys.readouterr()
    assert "ruled out: large: parameters: " in shown.out
    assert "of training each candidate to the last step" in shown.out


def test_a_single_candidate_is_trained_and_reported(selected: Selected, tmp_path: Path) -> None:
    """It is the teacher itself: there is nothing to learn, which is said before it trains."""
    teacher = str(selected.root / "large")
    probe = build_label_set(
        tmp_path / "probe",
        Path(teacher),
        random_rows(6, 290, seed=8),
        vocab_size=290,
        k=200,
    )
    labels = build_label_set(
        tmp_path / "labels", Path(teacher), random_rows(12, 290), vocab_size=290, k=200
    )
    content = {
        "base": BASE | {"lr": 1e-9},
        "teachers": {"self": {"labels": str(labels), "probe": str(probe)}},
        "runs": [{"name": "only", "student": teacher}],
        "budget": {"steps": 2},
    }
    runner = InThisProcess()
    file = write(tmp_path / "select.yaml", content)
    assert select(file, SelectConfig(out=tmp_path / "out"), runner) == 0
    record = read(tmp_path / "out")
    assert record.best == "only"
    assert runner.ran == [("only", 0, 2)]
    (warning,) = [each for each in record.warnings if "as good already" in each]
    assert "only" not in warning
    assert teacher in warning
    assert record.share == 1


def test_an_unsure_teacher_and_low_coverage_are_warned_of(selected: Selected) -> None:
    facts = set_facts(open_label_set(selected.probe))
    assert 0 < facts.confidence < facts.covered < 1
    assert facts.rejects == 0
    assert facts.confidence is not None
    assert facts.entropy is not None
    strict = Checks(entropy=0.01, confidence=1, covered=1, rejects=0)
    (unsure,) = teacher_warnings(facts, strict)
    assert "the teacher itself is unsure" in unsure
    assert f"{facts.entropy:.2f} nats" in unsure
    (low,) = coverage_warnings(facts, strict)
    assert f"{facts.covered:.1%}" in low
    rejected = facts.model_copy(update={"rejects": 0.3})
    assert "30.0% of the records were rejected" in coverage_warnings(rejected, strict)[1]
    lax = Checks(entropy=99, confidence=0, covered=0, rejects=1)
    assert not teacher_warnings(facts, lax) + coverage_warnings(rejected, lax)


def test_states_alone_train_and_do_not_measure(
    world: World, selected: Selected, probe_rows: list[Row], tmp_path: Path
) -> None:
    """Such a set says nothing of top tokens."""

    def states(name: str, rows: list[Row]) -> Path:
        path, size = tmp_path / name, world.vocab_size
        return build_label_set(
            path, world.teacher, rows, vocab_size=size, k=0, layers=("final",), step=0.05
        )

    facts = set_facts(open_label_set(states("labels", world.rows[:4])))
    assert (facts.entropy, facts.confidence, facts.covered) == (None, None, None)
    strict = Checks(entropy=0.01, confidence=1, covered=1, rejects=0)
    assert not teacher_warnings(facts, strict) + coverage_warnings(facts, strict)
    sets = {"labels": str(tmp_path / "labels"), "probe": str(selected.probe)}
    content = {
        "base": BASE | {"loss": ["exact_kl=1"]},
        "grid": {"student": [str(world.student)]},
        "teachers": {"tiny": sets},
        "budget": {"steps": 4},
    }
    config = SelectConfig(out=tmp_path / "out", dry_run=True)
    assert select(write(tmp_path / "select.yaml", content), config, InThisProcess()) == 0
    sets["probe"] = str(states("probe", probe_rows))
    with pytest.raises(SoftshardsError, match=r"teachers.tiny: the probe holds no top-k"):
        select(write(tmp_path / "select.yaml", content), config, InThisProcess())


Change = Callable[[dict[str, Any]], None]


def at(*keys: str, to: Any) -> Change:
    """Return what sets a value of select.yaml."""

    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (at("bugdet", to={}), "unknown key bugdet"),
        (at("budget", to={"step": 3}), r"budget\.step: unknown key\n  hint: did you mean steps\?"),
        (at("budget", to={"steps": 3, "tokens": 9}), "`steps` or `tokens`, one of them"),
        (at("budget", to={}), "`steps` or `tokens`, one of them"),
        (at("budget", to={"steps": 0}), r"budget\.steps: .*greater than or equal to 1"),
        (at("constraints", to={"parameter": 3}), "did you mean parameters?"),
        (at("checks", to={"covered": 2}), r"checks\.covered"),
        (at("teachers", to={}), "teachers: "),
        (at("teachers", to={"a b": SETS, "a-b": SETS}), "or there twice: a-b_s_lr=0.001"),
        (at("teachers", "tiny", "labels", to={}), r"teachers\.tiny\.labels"),
        (at("teachers", "tiny", "probs", to="x"), r"teachers\.tiny\.probs: unknown key"),
        (at("base", "pack_token", to=1), "did you mean pack_tokens?"),
        (at("base", "labels", to="x"), "base sets labels, which the selection sets itself"),
        (at("base", "epochs", to=2), "`budget` decides how long candidates train"),
        (at("base", "out", to="x"), "base sets out"),
        (at("base", "schedule", to="cosine"), "schedule is cosine, whose learning rate falls"),
        (at("grid", "max_steps", to=[1, 2]), "max_steps, which the selection sets itself"),
        (at("grid", "pack_tokens", to=[64, 128]), "trains on 128 tokens per step, .* on 64"),
        (at("grid", to={}), "no trial in it"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path: Path, change: Change, message: str) -> None:
    content: dict[str, Any] = {
        "base": dict(BASE),
        "teachers": {"tiny": dict(SETS)},
        "grid": {"student": ["s"], "lr": [1e-3, 1e-4]},
        "budget": {"steps": 9},
    }
    change(content)
    path = write(tmp_path / "select.yaml", content)
    with pytest.raises(SoftshardsError, match=message):
        read_select(path, tmp_path)


def test_teachers_and_kinds_of_labels_are_part_of_names(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "teachers": {
            "small": {"labels": {"text": "a", "answers": "b"}, "probe": "p"},
            "large": {"labels": "c", "probe": "q"},
        },
        "slices": {"half": {"teacher": "models/t", "keep": 2}},
        "grid": {"student": ["half", "models/s"]},
        "budget": {"steps": 9},
    }
    path = write(tmp_path / "select.yaml", content)
    found = read_select(path, tmp_path)
    assert [each.name for each in found.candidates] == [
        *("small-text_half", "small-text_s", "small-answers_half", "small-answers_s"),
        *("large_half", "large_s"),
    ]
    places = [(c.trial.config.labels, c.trial.config.eval_labels) for c in found.candidates]
    assert [tuple(map(str, each)) for each in places] == [
        *([("a", "p")] * 2),
        *([("b", "p")] * 2),
        *([("c", "q")] * 2),
    ]
    # One slice for all teachers, measured on the first one's labels.
    assert [(str(each.labels), each.out) for each in found.slices] == [
        ("a", tmp_path / "students" / "half")
    ]
    assert found.metric == "ce"
    content["rank_by"] = "kl"
    with pytest.raises(SoftshardsError, match="KL to different teachers does not compare"):
        read_select(write(path, content), tmp_path)
    del content["teachers"]["large"]
    assert read_select(write(path, content), tmp_path).metric == "kl"


def test_sets_that_do_not_compare_are_refused(
    world: World, selected: Selected, probe_rows: list[Row], tmp_path: Path
) -> None:
    make_tokenizer(tmp_path / "other")
    make_model(tmp_path / "other", vocab_size=world.vocab_size, layers=1, seed=9)
    alien = make_tokenizer(tmp_path / "alien", text=["quite another text, of other words"])
    make_model(tmp_path / "alien", vocab_size=alien, layers=1, seed=9)

    def labels(name: str, teacher: str, rows: list[Row], size: int = world.vocab_size) -> str:
        return str(build_label_set(tmp_path / name, tmp_path / teacher, rows, vocab_size=size))

    other, shared = labels("o", "other", world.rows[:4]), labels("p", "other", probe_rows)
    elsewhere = labels("q", "other", random_rows(8, world.vocab_size, seed=8))
    foreign = labels("f", "alien", random_rows(8, alien), alien)
    ours = {"labels": str(world.labels), "probe": str(selected.probe)}
    one = {**selected.content, "grid": {"student": [str(world.student)]}, "runs": []}

    def run(theirs: dict[str, str], **more: dict[str, str]) -> int:
        content = {**one, "teachers": {"theirs": theirs, **more}}
        config = SelectConfig(out=tmp_path / "out", dry_run=True)
        return select(write(tmp_path / "select.yaml", content), config, InThisProcess())

    for theirs, message in (
        ({"labels": other, "probe": elsewhere}, "the probe labels other tokens"),
        ({"labels": foreign, "probe": foreign}, "the probe is the set to train on"),
        ({"labels": other, "probe": str(selected.probe)}, "comes from a different teacher than"),
    ):
        with pytest.raises(SoftshardsError, match=message):
            run(theirs, ours=ours)
    strangers = labels("g", "alien", random_rows(6, alien, seed=3), alien)
    with pytest.raises(SoftshardsError, match="its tokenizer differs"):
        run({"labels": foreign, "probe": strangers}, ours=ours)
    # The same text by both teachers: compared by cross-entropy.
    assert run({"labels": other, "probe": shared}, ours=ours) == 0


def test_constraints_that_rule_out_all_say_which(selected: Selected, tmp_path: Path) -> None:
    def run(**limits: float) -> None:
        content = selected.content | {"constraints": limits}
        file = write(tmp_path / "select.yaml", content)
        select(file, SelectConfig(out=tmp_path / "out", bench=bench), InThisProcess())

    bench: Path | None = None
    with pytest.raises(SoftshardsError, match=r"rule out all candidates:(.|\n)*large: bytes: "):
        run(bytes=10)
    with pytest.raises(SoftshardsError, match="rule out all candidates"):
        run(bytes=10, generating=10)  # whose speed does not matter any more
    with pytest.raises(SoftshardsError, match=r"generating: .* was not measured\n.*labeler bench"):
        run(generating=10)
    bench = tmp_path / "bench.json"
    speed = {"score_tokens_per_s": 90.0, "generate_tokens_per_s": 77.0}
    students = ("student", "other", "large")
    models = [{"model": "x", "name": name, **speed} for name in students]
    bench.write_text(json.dumps({"engine": {}, "models": models}))
    with pytest.raises(SoftshardsError, match="generating: 77 tokens/s, at least 80 tokens/s"):
        run(generating=80)


def test_what_is_missing_is_said_before_students_are_sliced(
    selected: Selected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {
        **selected.content,
        "slices": {"cut": {"teacher": str(selected.root / "large"), "keep": 1}},
        "runs": [{"name": "cut", "student": "cut"}],
        "constraints": {"reading": 10},
    }
    config = SelectConfig(out=tmp_path / "out")
    with pytest.raises(SoftshardsError, match=r"constraints.reading: s_lr=0.003 was not measured"):
        select(write(tmp_path / "select.yaml", content), config, InThisProcess())
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SoftshardsError, match="Ray is not installed"):
        select(write(tmp_path / "select.yaml", content | {"constraints": {}}), config)
    assert not (tmp_path / "out" / "students").exists()


def test_if_all_fail_the_error_says_why(selected: Selected, tmp_path: Path) -> None:
    runs = [each for each in selected.content["runs"] if each["name"] in ("broken", "diverging")]
    content = {**selected.content, "runs": runs}
    del content["grid"]
    file = write(tmp_path / "select.yaml", content)
    with pytest.raises(SoftshardsError, match=r"all failed:(.|\n)*diverging: .*not finite"):
        select(file, SelectConfig(out=tmp_path / "out"), InThisProcess())
