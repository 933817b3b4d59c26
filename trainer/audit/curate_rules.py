"""Findings as rules of `labeler curate`: YAML files for its `--config`."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from schemas.atomic import write_atomic
from schemas.printable import one_line
from schemas.yaml_settings import LARGEST_FILE
from trainer.audit.audit_results import AuditResults

RULE_BYTES = LARGEST_FILE // 4
HEADER = "# Rows that `trainer audit` found. Delete the rules that you do not want.\nwhere:\n"


def write_rules(results: AuditResults, labels: str, out: Path) -> None:
    """Write rules that drop the rows found, and name them in the results.

    A file that `--config` reads has a limit of size. Where the rules need more, the commands follow
    each other: the second selects from the first one's view.

    Args:
        results: the audit.
        labels: the label set or view, as the user named it.
        out: its file; the rules are written beside it.
    """
    base = out.name.removesuffix(".json")
    results.rules, results.commands = [], []
    source = labels
    for number, text in enumerate(_files(_rules(results)), 1):
        suffix = "" if number == 1 else f"-{number}"
        rules = out.with_name(f"{base}.rules{suffix}.yaml")
        view = out.with_name(f"{base}{suffix}.view.json")
        write_atomic(rules, text)
        results.rules.append(str(rules))
        results.commands.append(
            shlex.join(["labeler", "curate", source, "--out", str(view), "--config", str(rules)])
        )
        source = str(view)


def _rules(results: AuditResults) -> Iterator[str]:
    """Yield rules as YAML, one of each kind of finding or more."""
    groups: dict[str, set[str]] = {}
    for finding in results.text.findings if results.text else ():
        groups.setdefault(f"contain {finding.kind}", set()).add(finding.row.name)
    for model in results.of_role("model"):
        for row in model.memorization.rows:
            how = "verbatim" if row.extracted else "nearly verbatim"
            what = f"are continued {how} by {one_line(model.paths[0])}"
            groups.setdefault(what, set()).add(row.row.name)
    groups["contain canaries"] = {row.name for row in results.canary_rows}
    for what, names in groups.items():
        for part in _parts(sorted(names)):
            rule = f"concat(id, '/', chunk, '/', sample) not in ({', '.join(part)})"
            text = yaml.safe_dump([rule], width=2**30, allow_unicode=True)
            yield f"# {len(part)} rows that {what}\n{text}"


def _parts(names: list[str]) -> Iterator[list[str]]:
    """Yield names, quoted for SQL, as many at a time as a rule may hold."""
    part: list[str] = []
    size = 0
    for name in names:
        quoted = "'" + name.replace("'", "''") + "'"
        size += len(quoted.encode()) + 2
        if part and size > RULE_BYTES:
            yield part
            part, size = [], len(quoted.encode())
        part.append(quoted)
    if part:
        yield part


def _files(rules: Iterable[str]) -> list[str]:
    """Return the rules as files that are small enough."""
    files: list[str] = []
    for rule in rules:
        if not files or len((files[-1] + rule).encode()) > LARGEST_FILE:
            files.append(HEADER)
        files[-1] += rule
    return files
