"""Tasks, answers, exports and audits: the page, the Markdown and the JSON hold their values."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.trainer.report.reported import Reported
from tests.trainer.report.reported_findings import add_findings
from trainer.report.build_report import report


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
    add_findings(config, {0: 0.65})
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
    assert export[8].startswith("23")
    assert "not stable" in export[8]
    (_, audit) = rows_of(html, "audit")
    assert audit == ["runs/kd/final", "model", "7 of 200", "11 of 200", "37", "1 of 9", "–"]

    markdown = config.out.with_suffix(".md").read_text()
    assert re.search(r"\| capitals \| acc \| 0.750 \| 80.0% \(", markdown)
    assert re.search(r"\| chrF \| 41.500 \(38.250 to 44.750\) \| – \| – \|", markdown)
    assert "| 7 of 200 | 11 of 200 | 37 | 1 of 9 | – |" in markdown
    assert "| gguf:q8_0 | xllamacpp 1 | 100.0 MB | 1.0500 | 23, not stable |" in markdown
    for heading in ("Tasks", "Exported students", "What models repeat of the training text"):
        table = markdown[markdown.index(f"## {heading}") :].splitlines()
        assert table[2].startswith("|")
        assert set(table[3]) <= set("|-: "), "Markdown wants this line right below the headings"

    content = json.loads(config.out.with_suffix(".json").read_text())
    assert content["exports"][0]["ppl_ratio"] == 1.05
    assert content["audit"][0]["longest"] == 37
    assert html.count("<svg") == 4  # the trade-offs, once more for tasks
    assert "the mean over tasks, above chance where it is known" in html

    steps = {step["makes"]: step["command"] for step in content["reproduction"]["steps"]}
    measured = steps["held-out measurements"]
    for flags in (
        "--tasks capitals.yaml --task-shots 0",
        "--reference teachers --answers students",
        "--verdicts judged.jsonl",
        "--refusal-pattern '^No'",
    ):
        assert flags in measured
    assert "--top-k" not in measured  # the default, like --worst


def test_settings_of_the_measurement_are_reproduced(tmp_path: Path) -> None:
    made = Reported(tmp_path)
    made.add("kd", ce=2.5)
    made.models[0].top_k, made.models[0].worst = 5, []
    assert report(made.config()) == 0
    (command,) = re.findall(r'"trainer evaluate [^"]*"', (tmp_path / "report.json").read_text())
    assert "--top-k 5 --worst 0" in command
