"""Tasks, answers, exports and audits for `trainer report` to read, without any model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.trainer.report.reported import DIGEST
from trainer.audit.audit_results import (
    AuditedModel,
    AuditResults,
    AuditSettings,
    Leaks,
    Memorization,
    Share,
)
from trainer.evaluate.answers.answer_results import AnswerFigure, MeasuredAnswers
from trainer.evaluate.bootstrap import REPLICATES, to_text
from trainer.evaluate.results import EvaluationResults, HeldOutSet
from trainer.evaluate.tasks.task_results import MeasuredTask, TaskMetric, TaskSettings
from trainer.export.export_record import (
    EXPORT,
    ExportQuality,
    ExportRecord,
    ExportSpeed,
    Measurement,
)
from trainer.report.report_config import ReportConfig

SETTINGS = TaskSettings(lm_eval="0.4.13", shots=0, limit=None, chat_template=False, dtype="fp32")


def task(model: str, value: float) -> MeasuredTask:
    random = np.random.default_rng(0)
    metric = TaskMetric(
        task="capitals",
        metric="acc",
        filter="none",
        value=value,
        stderr=0.02,
        higher_is_better=True,
        chance=0.25,
        items=400,
        replicates=to_text(value + 0.01 * random.standard_normal(REPLICATES)),
    )
    return MeasuredTask(
        model=model, name="capitals.yaml", digest="d", settings=SETTINGS, metrics=[metric]
    )


def answers(weights: str) -> MeasuredAnswers:
    rest = {"weights_scope": "full", "reference": "teachers", "missing": 2, "surplus": 0}
    return MeasuredAnswers(
        path="students",
        inputs="i",
        verdicts=["judged.jsonl"],
        refusal_pattern="^No",
        weights=weights,
        prompts=31,
        answers=31,
        student={"chrf": AnswerFigure(value=41.5, interval=(38.25, 44.75))},
        teacher={},
        differences={},
        **rest,
    )


def write_export(folder: Path) -> None:
    folder.mkdir()
    quality = {"labels": 100, "ce": 2.0}
    ExportRecord(
        softshards="0.1.0",
        format="gguf:q8_0",
        model="m",
        weights=DIGEST,
        parameters=100,
        student_bytes=400_000_000,
        bytes=100_000_000,
        files={"m.gguf": DIGEST},
        converter="c",
        measured=Measurement(
            runtime="xllamacpp 1",
            labels="held-out",
            label_digests={},
            rows=3,
            exported=ExportQuality(ppl=10.5, agreement=0.683, **quality),
            student=ExportQuality(ppl=10.0, agreement=0.685, **quality),
            speed=ExportSpeed(
                score_tokens_per_s=90.0,
                generate_tokens_per_s=23.0,
                score_spread=0.01,
                generate_spread=0.3,
            ),
        ),
    ).write(folder / EXPORT)


def write_audit(path: Path, held_out: HeldOutSet) -> None:
    memorization = Memorization(
        extracted=Share(found=7, of=200),
        near_verbatim=Share(found=11, of=200),
        matched=3.0,
        overlap=4.0,
        copied=0.1,
        longest=37,
        rows=[],
    )
    leaks = Leaks(kinds={"EMAIL_ADDRESS": Share(found=1, of=9)}, values=[0], generated={})
    settings = {"prefix": 50, "continuation": 50, "rows": 200, "ngram": 8, "seed": 0}
    AuditResults(
        label_set=held_out,
        settings=AuditSettings(scan_rows=10, candidates=1000, **settings),
        eligible=300,
        models=[
            AuditedModel(
                paths=["runs/kd/final"],
                role="model",
                weights=DIGEST,
                dtype="fp32",
                seconds=1.0,
                memorization=memorization,
                leaks=leaks,
            )
        ],
    ).write(path)


def add_findings(config: ReportConfig, tasks: dict[int, float]) -> None:
    """Write an export and an audit beside a report's files, and add tasks and answers to them.

    Args:
        config: of the report; it names `gguf` and `audit.json`.
        tasks: accuracy of models, by their place in the results; of the teacher, it is 0.75.
    """
    results = EvaluationResults.open(config.eval)
    weights = [model.weights for model in results.models]
    results.tasks = [task(DIGEST, 0.75), *(task(weights[at], v) for at, v in tasks.items())]
    results.answers = [answers(weights[0])]
    results.write(config.eval)
    write_export(config.eval.with_name("gguf"))
    write_audit(config.eval.with_name("audit.json"), results.label_set)
