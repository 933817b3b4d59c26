"""What the audit found is dropped by the command that it prints."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
import yaml

import labeler.cli
from schemas import open_label_set
from schemas.yaml_settings import LARGEST_FILE
from tests.trainer.build_label_set import Row, build_label_set
from tests.trainer.conftest import World
from trainer.audit import curate_rules
from trainer.audit.audit_results import (
    AuditedModel,
    AuditResults,
    AuditSettings,
    Finding,
    Memorization,
    MemorizedRow,
    RowKey,
    ScannedText,
    Share,
)
from trainer.evaluate.results import HeldOutSet

NAMES = ["plain", "it's 'quoted'", "späße/0/0", "back\\slash %_", "new\nline", "--flag", "🎉"]
NONE = Share(found=0, of=1)


def key(name: str, chunk: int = 0) -> RowKey:
    return RowKey(id=name, chunk=chunk, sample=0)


def audited(labels: Path, names: list[str]) -> AuditResults:
    """Return an audit that found personal data in all rows but the last two, and copied the last
    but one."""
    findings = [
        Finding(
            row=key(name), group="pii", kind="EMAIL_ADDRESS", start=0, stop=5, token_start=0,
            token_stop=2, span="text", value=0,
        )
        for name in names[:-2]
    ]  # fmt: skip
    row = MemorizedRow(
        row=key(names[-2]), start=1, matched=3, overlap=3, copied=1.0, extracted=True
    )
    opened = open_label_set(labels)
    return AuditResults(
        label_set=HeldOutSet.of(opened, digests=opened.digests),
        settings=AuditSettings(
            prefix=1, continuation=3, rows=1, ngram=2, seed=0, scan_rows=9, candidates=1
        ),
        eligible=9,
        text=ScannedText(rows=9, characters=9, seconds=1.0, findings=findings),
        models=[
            AuditedModel(
                role="model", paths=["run/final"], weights="0", dtype="fp32", seconds=1.0,
                memorization=Memorization(
                    extracted=NONE, near_verbatim=NONE, matched=0, overlap=0, copied=0, longest=0,
                    rows=[row],
                ),
            )
        ],
    )  # fmt: skip


def built(world: World, path: Path, names: list[str]) -> Path:
    rows = [Row(id=name, input_ids=[1, 2, 3, 4], spans=[(1, 4, "text")]) for name in names]
    return build_label_set(path, world.teacher, rows, vocab_size=world.vocab_size)


def apply(results: AuditResults, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run the commands; return the last view."""
    for command in results.commands:
        words = shlex.split(command)
        assert words[:2] == ["labeler", "curate"]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as stop:
            labeler.cli.main()
        assert stop.value.code == 0
    return Path(words[words.index("--out") + 1])


def left(view: Path) -> list[str]:
    labels = open_label_set(view)
    return [
        name
        for group in labels.row_groups
        for name in labels.read_row_group(group, ["id"])["id"].to_pylist()
    ]


def test_the_rows_found_are_dropped(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = built(world, tmp_path / "a set", NAMES)
    results = audited(labels, NAMES)
    curate_rules.write_rules(results, str(labels), tmp_path / "an audit.json")
    (rules,) = map(Path, results.rules)
    assert rules == tmp_path / "an audit.rules.yaml"
    assert len(yaml.safe_load(rules.read_text())["where"]) == 2
    assert "# 5 rows that contain EMAIL_ADDRESS" in rules.read_text()
    assert "# 1 rows that are continued verbatim by run/final" in rules.read_text()
    assert left(apply(results, monkeypatch)) == NAMES[-1:]


def test_many_rows_take_several_files(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curate_rules, "LARGEST_FILE", 1000)
    monkeypatch.setattr(curate_rules, "RULE_BYTES", 300)
    names = [f"record number {number}" for number in range(100)]
    labels = built(world, tmp_path / "set", names)
    results = audited(labels, names)
    curate_rules.write_rules(results, str(labels), tmp_path / "audit.json")
    assert len(results.rules) > 2
    assert all(Path(path).stat().st_size <= 1000 for path in results.rules)
    assert left(apply(results, monkeypatch)) == names[-1:]


def test_a_rule_of_the_default_size_fits_a_file(world: World, tmp_path: Path) -> None:
    names = [f"{number:0200d}" for number in range(8000)]
    labels = built(world, tmp_path / "set", names[:3])
    results = audited(labels, names)
    curate_rules.write_rules(results, str(labels), tmp_path / "audit.json")
    assert len(results.rules) == 2
    assert all(Path(path).stat().st_size <= LARGEST_FILE for path in results.rules)


def test_nothing_found_is_no_rule(world: World, tmp_path: Path) -> None:
    results = audited(world.labels, NAMES)
    results.text, results.models = None, []
    curate_rules.write_rules(results, str(world.labels), tmp_path / "audit.json")
    assert results.rules == results.commands == []
    assert not list(tmp_path.iterdir())
