"""Tasks, answers, exports and audits: the page, the Markdown and the JSON hold their values."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from tests.trainer.report.reported import DIGEST, Reported
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
from trainer.evaluate.results import EvaluationResults
from trainer.evaluate.tasks.task_results import MeasuredTask, TaskMetric, TaskSettings
from trainer.export.export_record import (
    EXPORT,
    ExportQuality,
    ExportRecord,
    ExportSpeed,
    Measurement,
)
from trainer.report.build_report import report

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
            speed=ExportSpeed(score_tokens_per_s=90.0, generate_tokens_per_s=23.0),
        ),
    ).write(folder / EXPORT)


def write_audit(path: Path, held_out: Any) -> None:
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


def rows_of(html: str, section: str) -> list[list[str]]:
    """Return the cells of the tables in a section of the page, without tags."""
    body = html[html.index(f'<h2 id="{section}">') :]
    body = body[: body.index("</section>")]
    return [
        [re.sub(r"<[^>]+>", " ", cell).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
        for row in re.findall(r"<tr>.*?</tr>", body, re.DOTALL)
    ]


def test_each_section_shows_what_was_measured(tmp_path: Path) -> None:
    made = Reported(tmp_path)
    made.add("kd", ce=2.5)
    config = made.config(export=(tmp_path / "gguf",), audit=tmp_path / "audit.json")
    results = EvaluationResults.open(config.eval)
    student = results.models[0].weights
    results.tasks = [task(DIGEST, 0.75), task(student, 0.65)]
    results.answers = [answers(student)]
    results.write(config.eval)
    write_export(tmp_path / "gguf")
    write_audit(tmp_path / "audit.json", results.label_set)
    assert report(config) == 0

    html = config.out.read_text()
    (_, tasks) = rows_of(html, "tasks")
    assert tasks[:5] == ["capitals", "acc", "400", "25.0%", "0.750"]
    assert tasks[5].startswith("80.0%")  # (0.65 - 0.25) / (0.75 - 0.25)
    (_, chrf) = rows_of(html, "answers")
    assert [re.sub(r"\s+", " ", cell) for cell in chrf] == [
        *("chrF", "41.500 38.250 to 44.750", "–", "–")
    ]
    (_, export) = rows_of(html, "exports")
    assert export[1:7] == ["gguf:q8_0", "xllamacpp 1", "100.0 MB", "25.0%", "10.50", "1.0500"]
    assert export[7].startswith("68.3%")
    assert export[8] == "23"
    (_, audit) = rows_of(html, "audit")
    assert audit == ["runs/kd/final", "model", "7 of 200", "11 of 200", "37", "1 of 9", "–"]

    markdown = config.out.with_suffix(".md").read_text()
    assert re.search(r"\| capitals \| acc \| 0.750 \| 80.0% \(", markdown)
    assert re.search(r"\| chrF \| 41.500 \(38.250 to 44.750\) \| – \| – \|", markdown)
    assert "| 7 of 200 | 11 of 200 | 37 | 1 of 9 | – |" in markdown
    assert "| gguf:q8_0 | xllamacpp 1 | 100.0 MB | 1.0500 | 23 |" in markdown
    for heading in ("Tasks", "Exported students", "What models repeat of the training text"):
        table = markdown[markdown.index(f"## {heading}") :].splitlines()
        assert table[2].startswith("|")
        assert set(table[3]) <= set("|-: "), "Markdown wants this line right below the headings"

    content = json.loads(config.out.with_suffix(".json").read_text())
    assert content["exports"][0]["ppl_ratio"] == 1.05
    assert content["audit"][0]["longest"] == 37
