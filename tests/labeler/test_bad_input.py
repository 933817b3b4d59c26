"""Mistakes with existing label sets: each is one message, exit code 2."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from labeler.labeling.runs.locks import rank_lock
from labeler.labeling.writing.set_place import SetPlace
from schemas.manifest import read_manifest, write_manifest
from tests.labeler.command_line import CommandLine
from tests.schemas.sets import GOLDEN


@pytest.fixture(autouse=True)
def places(tmp_path: Path) -> None:
    """Make a label set `set`, a file `file.txt`, and a folder `full` with other content."""
    shutil.copytree(GOLDEN, tmp_path / "set")
    (tmp_path / "file.txt").write_text("text\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("inspect gone", "gone: no label set here: the folder does not exist"),
        ("push s3://bucket/set me/it --license unknown", "s3://bucket/set: this is a URL; only a"),
        ("view set --out s3://bucket/page.html", "s3://bucket/page.html: this is a URL; only a"),
        ("pull me/it --out s3://bucket/set", "s3://bucket/set: this is a URL; only a path"),
        ("curate set --out s3://bucket/a.view.json", "both on this machine, or both in one bucket"),
        ("inspect nosuch://bucket/set", "nosuch://bucket/set/manifest.json: cannot be used: Prot"),
        ("inspect full", "full: no label set here: manifest.json is missing"),
        ("inspect file.txt", "file.txt: not a view of a label set"),
        ("repair gone", "gone: no label set here"),
        ("repair file.txt", "file.txt: no label set here"),
        ("convert set full", "full: the folder is not empty: it has mine"),
        ("convert set file.txt", "file.txt: File exists"),
        ("convert set set", "set: the new set would overwrite its source"),
        ("merge set set", "merge needs at least two label sets"),
        ("curate set --out file.txt/a.view.json --refusals", "file.txt: File exists"),
        ("curate set --out full", "give a name that ends in .view.json"),
        (
            "export set full --format jsonl",
            "full: format jsonl needs a file name that ends in",
        ),
        ("view set --out full", "full: this is a folder"),
        ("view set --port 70000", "--port"),
        ("inspect set --row first --positions 0", "--positions"),
        ("verify set --rescore -1", "--rescore"),
    ],
)
def test_places_and_numbers(labeler: CommandLine, command: str, message: str) -> None:
    before = sorted(Path().rglob("*"))
    done = labeler(*command.split())
    assert done.code == 2, done.out
    assert message in done.err
    assert [p for p in sorted(Path().rglob("*")) if p.name[0] != "."] == before


@pytest.mark.parametrize(
    ("rule", "text", "message"),
    [
        ("--where", "mean_nl < 3", "did you mean mean_nll"),
        ("--where", "mean_nll <", "sql parser error"),
        ("--where", "n_tokens", "not true or false"),
        ("--where", "sum(n_tokens) > 3", "it aggregates many rows"),
        ("--where", "n_tokens > 'a'", "cannot compare"),
        ("--where", "spans > 3", "could not evaluate"),
        ("--where", "cast(id as int) > 3", "compare like with like"),
        ("--score", "cast(id as int)", "compare like with like"),
        ("--score", "id", "not a number"),
        ("--refusal-pattern", "(?<=a)b", "not a regular expression"),
    ],
)
def test_expressions(labeler: CommandLine, rule: str, text: str, message: str) -> None:
    """Some fail by their types, others at the first row for which they cannot be computed."""
    done = labeler("curate", "set", "--out", "a.view.json", "--dedup", "exact", rule, text)
    assert done.code == 2, done.out
    assert message in done.err
    assert text in done.err, "the message names the expression"
    assert not Path("a.view.json").exists()


def test_an_unfinished_set_and_a_folder_in_use(labeler: CommandLine) -> None:
    Path("new").mkdir()
    with rank_lock(SetPlace(Path("new")), 0, 1):
        done = labeler("convert", "set", "new")
    assert done.code == 2
    assert "new: another process is writing into this folder" in done.err
    manifest = read_manifest(Path("set"))
    write_manifest(Path("set"), manifest.model_copy(update={"status": "running", "totals": None}))
    for command in ("inspect set", "convert set c", "merge set set m", "verify set"):
        done = labeler(*command.split())
        assert done.code == 2, command
        assert "set: the label set is not finished" in done.err
