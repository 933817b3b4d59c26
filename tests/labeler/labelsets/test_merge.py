"""`labeler merge`: several label sets become one, without losses or duplicates."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.runs.label_run import label
from labeler.labelsets.repair.salvage import read_footer, rebuild_manifest
from schemas import open_label_set, validate_label_set
from schemas.invariants import validate_table
from schemas.manifest import ROUNDED_BY, read_manifest, write_manifest
from tests.fork_server import fork_server
from tests.labeler.command_line import CommandLine
from tests.labeler.labeling.test_run import shard_bytes
from tests.tiny_model import TEXT, make_model, make_tokenizer

Row = dict[str, Any]


def documents(ids: range) -> list[Row]:
    return [{"id": f"d{i}", "text": f"{i} {' '.join(TEXT[i % 5 :])}"} for i in ids]


@pytest.fixture(scope="module")
def sets(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Make two disjoint sets, one that overlaps the first, and one from another teacher."""
    root = tmp_path_factory.mktemp("sets")
    other = root / "other-teacher"
    make_model(other, vocab_size=make_tokenizer(other) + 20, seed=5)
    parts = {
        "a": (teacher, range(24)),
        "b": (teacher, range(24, 40)),
        "c": (teacher, range(17, 30)),
        "other": (other, range(4)),
    }
    for name, (model, ids) in parts.items():
        source = root / f"{name}.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in documents(ids)))
        settings = {"engine": "transformers", "k": 8, "max_length": 64, "unit_labels": 150}
        label([str(source)], LabelConfig(model=model, out=root / name, **settings))
    return {name: root / name for name in parts}


def rows(path: Path | str) -> list[Row]:
    labels = open_label_set(path)
    return [r for g in labels.row_groups for r in labels.read_row_group(g).to_pylist()]


@pytest.mark.slow
def test_a_merged_set_has_the_rows_of_both_and_records_its_sources(
    sets: dict[str, Path], labeler: CommandLine
) -> None:
    facts = labeler("merge", sets["a"], sets["b"], "both", "--json").json
    assert rows("both") == rows(sets["a"]) + rows(sets["b"])
    both = open_label_set("both")
    assert facts | {"bytes": 0} == {
        "out": "both",
        "codec": "plain/1",
        "rows": both.rows,
        "labels": both.labels,
        "bytes": 0,
        "left_out": 0,
    }
    assert both.manifest.identity == open_label_set(sets["a"]).manifest.identity
    derived = both.manifest.provenance["derived"]
    assert derived["how"] == "merge"
    assert [one["path"] for one in derived["from"]] == [str(sets["a"]), str(sets["b"])]
    assert not list(validate_label_set(both))
    before = shard_bytes(Path("both"))
    assert labeler("merge", sets["a"], sets["b"], "both").code == 0
    assert shard_bytes(Path("both")) == before
    compact = labeler(
        "merge", "both", sets["a"], "third", "--on-duplicate", "first", "--codec", "compact"
    )
    assert compact.code == 0, compact.err
    assert open_label_set("third").manifest.codec == "compact/1"
    assert open_label_set("third").rows == both.rows


def test_duplicate_keys(sets: dict[str, Path], labeler: CommandLine) -> None:
    a, c = rows(sets["a"]), rows(sets["c"])
    known = {(row["id"], row["chunk"], row["sample"]) for row in a}
    new = [row for row in c if (row["id"], row["chunk"], row["sample"]) not in known]
    assert 0 < len(new) < len(c)
    refused = labeler("merge", sets["a"], sets["c"], "ac")
    assert refused.code == 2
    assert f"an earlier set has the keys of {len(c) - len(new)} rows" in refused.err
    named = refused.err.split(" rows: ")[1].split(" and ")[0].split(", ")
    assert len(named) == 5
    assert all(key.partition("/")[0] in {row["id"] for row in a} for key in named)
    assert not Path("ac").exists()
    facts = labeler("merge", sets["a"], sets["c"], "ac", "--on-duplicate", "first", "--json").json
    assert facts["left_out"] == len(c) - len(new)
    assert rows("ac") == a + new


@pytest.mark.slow
def test_views_are_merged_by_their_rows(sets: dict[str, Path], labeler: CommandLine) -> None:
    for name, where in (("even", "<"), ("odd", ">=")):
        flags = ("--where", f"n_labels {where} 60")
        assert labeler("curate", sets["a"], "--out", f"{name}.view.json", *flags).code == 0
    facts = labeler("merge", "even.view.json", "odd.view.json", "whole", "--json").json
    assert facts["rows"] == open_label_set(sets["a"]).rows

    def key(row: Row) -> tuple[str, int]:
        return row["id"], row["chunk"]

    assert sorted(rows("whole"), key=key) == sorted(rows(sets["a"]), key=key)


def test_refusals(sets: dict[str, Path], labeler: CommandLine) -> None:
    for arguments, message in (
        ((sets["a"], sets["other"], "out"), "only sets with the same teacher"),
        ((sets["a"], "out"), "needs at least two label sets"),
        ((sets["a"], "nowhere", "out"), "no label set here"),
    ):
        done = labeler("merge", *arguments)
        assert (done.code, message in done.err) == (2, True), done.err
        assert not Path("out").exists()


@pytest.mark.local("the sources are folders; in a store: test_store_runs.py")
def test_a_source_is_not_overwritten(sets: dict[str, Path], labeler: CommandLine) -> None:
    done = labeler("merge", sets["a"], sets["b"], sets["a"])
    assert (done.code, "would overwrite its source" in done.err) == (2, True), done.err


@pytest.mark.slow
def test_a_merge_resumes_after_kill_9(
    sets: dict[str, Path], labeler: CommandLine, tmp_path: Path
) -> None:
    """Kill the merge as soon as some units are journaled, run it again: the bytes are equal."""
    labeler("merge", sets["a"], sets["b"], "whole")
    whole = shard_bytes(tmp_path / "whole")
    units = len(whole)
    out = tmp_path / "killed"
    done_before = 0
    for done in (1, units // 2, units - 1):
        run = fork_server("tests.labeler.preload").start(
            *("tests.labeler.faults", "stop-between-units", "merge", sets["a"], sets["b"], out),
            environment={"UNITS": str(done - done_before)},
        )
        while psutil.Process(run.pid).status() != psutil.STATUS_STOPPED:
            assert run.poll() is None, run.communicate()
            time.sleep(0.01)
        assert len(list(out.glob("journal/unit-*.json"))) == done
        done_before = done
        run.kill()
        run.wait()
    done = labeler("merge", sets["a"], sets["b"], out)
    assert done.code == 0, done.err
    assert shard_bytes(out) == whole
    assert open_label_set(out).manifest.status == "complete"
    assert not list(out.glob("**/.tmp-*"))


def _begin_as_before(out: Path) -> None:
    """Make a finished plain set one that a version without ROUNDED_BY began."""
    manifest = read_manifest(out)
    derived = {n: v for n, v in manifest.provenance["derived"].items() if n != ROUNDED_BY}
    changes = {"status": "running", "provenance": manifest.provenance | {"derived": derived}}
    write_manifest(out, manifest.model_copy(update=changes))


def test_a_plain_set_keeps_the_rounding_of_a_compact_source(
    sets: dict[str, Path], labeler: CommandLine
) -> None:
    """Labels of `compact/1` break the bounds of `plain/1` wherever they go."""
    labeler("convert", sets["b"], "compact")
    assert labeler("merge", sets["a"], "compact", "both", "--codec", "plain", "--json").json
    labeler("convert", "both", "again", "--codec", "plain")
    for name in ("both", "again"):
        labels = open_label_set(name)
        assert (labels.manifest.codec, labels.manifest.rounding_codec) == ("plain/1", "compact/1")
        assert list(validate_label_set(labels)) == []
    before = labels.manifest
    _begin_as_before(Path("again"))
    assert labeler("convert", "both", "again", "--codec", "plain").code == 0
    assert read_manifest(Path("again")).provenance == before.provenance
    lost = rebuild_manifest(Path("again"), [], lambda *_: None)
    assert lost.rounding_codec == "compact/1"
    Path("again/manifest.json").write_bytes(b"")
    footer = read_footer(Path("again") / labels.row_groups[0].shard)
    assert footer is not None
    lost = rebuild_manifest(Path("again"), [footer], lambda *_: None)
    assert (lost.rounding_codec, lost.format_version) == ("compact/1", before.format_version)
    (table,) = (labels.read_row_group(g) for g in labels.row_groups[-1:])
    identity = labels.manifest.identity
    assert list(validate_table(table, vocab_size=identity.vocab_size, k=identity.k))
    labeler("convert", "both", "compact-again")
    assert open_label_set("compact-again").manifest.provenance["derived"].keys() == {"how", "from"}
