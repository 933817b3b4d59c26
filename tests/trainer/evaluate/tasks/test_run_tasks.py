"""Tasks end to end: the harness in processes of their own, against the harness called directly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from schemas import SoftshardsError
from tests.trainer.conftest import World
from tests.trainer.evaluate.tasks.topics_task import YAML, write_task
from tests.trainer.running import exit_code
from tests.trainer.test_child_process import WAIT_SECONDS, is_running, wait_until
from trainer.evaluate.bootstrap import document_counts, from_text
from trainer.evaluate.results import EvaluationResults, model_digest
from trainer.evaluate.tasks.run_tasks import harness_version, run_tasks
from trainer.evaluate.tasks.task_files import parse_tasks
from trainer.evaluate.tasks.task_results import MeasuredTask, TaskSettings

pytest.importorskip("lm_eval")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_children")]
ITEMS = 6


def settings(**other: object) -> TaskSettings:
    fields = {"lm_eval": harness_version(), "shots": None, "limit": None}
    return TaskSettings.model_validate(fields | {"chat_template": False, "dtype": "fp32"} | other)


def run(
    model: Path, tasks: str, known: list[MeasuredTask], *, allow_code: bool = False, **other: object
) -> list[MeasuredTask]:
    specs = parse_tasks([tasks], allow_code=allow_code)
    how = settings(**other)
    run_tasks(
        model,
        model_digest(model),
        specs,
        how,
        known,
        place=model.name,
        allow_code=allow_code,
        store=lambda: None,
    )
    return known


def test_the_command_equals_the_harness(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, out = write_task(tmp_path / "tasks", ITEMS), tmp_path / "eval.json"
    command = ["evaluate", "--labels", str(world.labels), "--model", str(world.student)]
    command += ["--teacher", str(world.teacher), "--out", str(out), "--tasks", str(task)]
    assert exit_code(command) == 0
    shown = capsys.readouterr()
    assert f"topics: acc ({ITEMS} items, chance 25.0%)" in shown.out
    results = EvaluationResults.open(out)
    assert [entry.model for entry in results.tasks] == [
        model_digest(world.teacher),
        model_digest(world.student),
    ]

    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    config = YAML.replace("topics.jsonl", str(task.with_name("topics.jsonl")))
    direct = tmp_path / "direct.yaml"
    direct.write_text(config)
    for model, entry in zip((world.teacher, world.student), results.tasks):
        expected = simple_evaluate(
            "hf",
            {"pretrained": str(model), "dtype": "float32"},
            tasks=[str(direct)],
            device="cpu",
            batch_size=8,
            task_manager=TaskManager(include_defaults=False),
        )
        values = expected["results"]["topics"]
        assert [metric.metric for metric in entry.metrics] == ["acc", "acc_norm"]
        for metric in entry.metrics:
            assert metric.value == values[f"{metric.metric},none"]
            assert metric.stderr == pytest.approx(values[f"{metric.metric}_stderr,none"])
            assert (metric.chance, metric.items) == (0.25, ITEMS)
            assert metric.higher_is_better is True
            answers = [sample[metric.metric] for sample in expected["samples"]["topics"]]
            counts = document_counts([f"topics#{i}" for i in range(ITEMS)])
            with np.errstate(invalid="ignore"):
                means = counts.T @ np.array(answers) / counts.sum(0)
            assert metric.replicates is not None
            np.testing.assert_allclose(from_text(metric.replicates), means, rtol=1e-6)

    before = out.read_bytes()
    assert exit_code([*command, "--json"]) == 0
    again = capsys.readouterr()
    assert again.err.count("topics: reused") == 2
    assert json.loads(again.out)["tasks"] == json.loads(before)["tasks"]


def test_other_settings_and_changed_items_run_again(world: World, tmp_path: Path) -> None:
    task = write_task(tmp_path, ITEMS)
    known: list[MeasuredTask] = []
    run(world.student, str(task), known, limit=2, shots=1)
    assert [metric.items for metric in known[0].metrics] == [2, 2]
    run(world.student, str(task), known, limit=2, shots=1)
    assert len(known) == 1
    (tmp_path / "topics.jsonl").write_text(
        "".join((tmp_path / "topics.jsonl").open().readlines()[1:])
    )
    run(world.student, str(task), known, limit=3, shots=1)
    assert [len(known), known[1].metrics[0].items] == [2, 3]


def test_a_process_leaves_nothing_behind(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = dict(os.environ)
    random = np.random.get_state()[1].tolist()  # type: ignore[union-attr, index]
    code = "import os\nos.environ['HF_HOME'] = '/nowhere'\ndef run(doc):\n    return doc['start']\n"
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "code.py").write_text(code)
    task = write_task(tmp_path / "tasks", ITEMS)
    plain = run(world.student, str(task), [])[0].metrics
    task.write_text(YAML.replace('"{{start}}"', "!function code.run"))
    found = run(world.student, str(task), [], allow_code=True)[0].metrics
    assert [metric.value for metric in found] == [metric.value for metric in plain]
    assert dict(os.environ) == before
    assert np.random.get_state()[1].tolist() == random  # type: ignore[union-attr, index]


SLOW = """import os, time
def run(doc):
    with open({pid!r} + ".tmp", "w") as file:
        file.write(str(os.getpid()))
    os.replace({pid!r} + ".tmp", {pid!r})
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_ended_command_leaves_no_process_of_tasks(
    world: World, tmp_path: Path, how: signal.Signals
) -> None:
    """Ctrl-C reaches the command alone, and a kill tells nobody; results need no --labels."""
    task, pid = write_task(tmp_path, ITEMS), tmp_path / "pid"
    task.write_text(YAML.replace('"{{start}}"', "!function slow.run"))
    (tmp_path / "slow.py").write_text(SLOW.format(pid=str(pid)))
    flags = ["--model", world.student, "--out", tmp_path / "tasks.json", "--tasks", task]
    command = [sys.executable, "-m", "trainer", "evaluate", "--allow-task-code", *map(str, flags)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_until(pid.exists)
        child = int(pid.read_text())
        assert is_running(child)
        process.send_signal(how)
        assert process.wait(WAIT_SECONDS) == (130 if how == signal.SIGINT else -how)
        wait_until(lambda: not is_running(child))
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "tasks.json").exists()


ESCAPE = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
REFUSED = {
    "a template that leaves its sandbox": (('"{{start}}"', f'"{ESCAPE}"'), "SecurityError"),
    "a metric of another library": (("metric: acc_norm", "metric: ./code.py"), "may|not of the"),
    "data of the Hub": (
        ("json\ndataset_kwargs:\n  data_files:\n    test: topics.jsonl", "some/dataset"),
        "not on this machine",
    ),
    "a column that is missing": (('"{{start}}"', '"{{begin}}"'), "'begin' is undefined"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_task_that_cannot_run_is_one_error(world: World, tmp_path: Path, kind: str) -> None:
    task, ((before, after), reason) = write_task(tmp_path, ITEMS), REFUSED[kind]
    assert before in YAML
    task.write_text(YAML.replace(before, after))
    with pytest.raises(SoftshardsError, match=reason) as caught:
        run(world.student, str(task), [])
    assert "Traceback" not in str(caught.value)


def test_a_model_without_a_tokenizer_is_one_error(world: World, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).symlink_to(world.student / name)
    with pytest.raises(SoftshardsError, match=r"model: .*tokenizer"):
        run(model, str(write_task(tmp_path, ITEMS)), [])


@pytest.mark.teacher
def test_the_real_teacher_knows_its_documentation(tmp_path: Path) -> None:
    teacher = Path(".cache/smollm2-135m-instruct")
    if not teacher.is_dir():
        pytest.skip("the teacher is not here")
    (found,) = run(teacher, str(write_task(tmp_path, 8)), [])
    values = {metric.metric: metric.value or 0.0 for metric in found.metrics}
    assert values["acc"] > 0.6
