"""`labeler repair`: damage is quarantined, good parts are kept, lost ones are redone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labeler.cli import main
from schemas import open_label_set
from schemas.fingerprint import sha256_file
from schemas.manifest import MANIFEST, read_manifest
from schemas.plan import open_plan, read_unit

pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application")  # run in a test
Command = Callable[..., tuple[int, dict[str, Any]]]
SHARD, ENTRY = "shards/part-000001.parquet", "journal/unit-000001.json"
REJECTS = "journal/unit-000001.rejects.parquet"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command line in this process; return its exit code and --json output."""

    def run(*arguments: object) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr("sys.argv", ["labeler", *map(str, arguments), "--json"])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), json.loads(printed.out or "{}") | {"err": printed.err}

    return run


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "corpus.jsonl"
    rows = [{"id": f"doc{i}", "text": f"the cat {i} sat on the mat " * 3} for i in range(16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": "none"}]))
    return path


def flags(teacher: Path, out: Path) -> list[object]:
    values = {"model": teacher, "out": out, "engine": "transformers", "k": 8, "max-length": 64}
    values |= {"unit-labels": 200, "row-group-labels": 100}
    return [word for name, value in values.items() for word in (f"--{name}", value)]


@pytest.fixture
def labels(source: Path, teacher: Path, tmp_path: Path, command: Command) -> Path:
    """A copy of a label set with several units, which is made once."""
    first = source.parent / "labels"
    if not first.exists():
        assert command("label", source, *flags(teacher, first))[0] == 0
    shutil.copytree(first, tmp_path / "labels")
    return tmp_path / "labels"


def contents(labels: Path, *, but: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the digests of all files that matter to a reader or a run."""
    files = (path for path in labels.rglob("*") if path.is_file())
    names = {str(path.relative_to(labels)): path for path in files}
    skip = ("quarantine", ".lock", *but)
    return {name: sha256_file(p) for name, p in names.items() if not name.startswith(skip)}


def flip(path: Path, at: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 4
    path.write_bytes(content)


def verified(labels: Path, command: Command) -> bool:
    code, result = command("verify", labels)
    assert (code == 0) == (result["problems"] == [])
    return code == 0


def test_an_undamaged_set_is_left_alone(labels: Path, command: Command) -> None:
    before = contents(labels)
    code, result = command("repair", labels)
    assert (code, result["moved"], result["rebuilt"], result["redo"]) == (0, {}, [], [])
    assert contents(labels) == before
    assert command("repair", labels / "nowhere")[0] == 2


def test_a_dry_run_changes_nothing(labels: Path, command: Command) -> None:
    flip(labels / SHARD)
    (labels / MANIFEST).unlink()
    before = contents(labels)
    code, result = command("repair", labels, "--dry-run")
    assert (code, result["redo"]) == (1, [1])
    assert SHARD in result["moved"]
    assert contents(labels) == before


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "another's"])
def test_a_bad_shard_is_quarantined_and_only_its_unit_labeled_again(
    labels: Path, source: Path, teacher: Path, command: Command, damage: str
) -> None:
    before = contents(labels, but=("ledger.json", "journal", "manifest.json", "index"))
    shard = labels / SHARD
    whole = shard.read_bytes()
    if damage == "flipped":
        flip(shard)
    elif damage == "cut":
        shard.write_bytes(whole[: len(whole) // 2])
    elif damage == "missing":
        shard.unlink()
    else:
        shutil.copyfile(labels / "shards/part-000000.parquet", shard)
    bad = shard.read_bytes() if shard.exists() else None
    assert not verified(labels, command)
    code, result = command("repair", labels)
    assert (code, result["redo"], result["left"]) == (1, [1], [])
    if bad is not None:
        assert (labels / "quarantine" / SHARD).read_bytes() == bad
    assert read_manifest(labels).status == "running"
    assert open_label_set(labels, allow_partial=True).rows > 0
    assert command("repair", labels)[1]["moved"] == {}  # once is enough
    code, summary = command("label", source, *flags(teacher, labels))
    units = read_manifest(labels).planned_units
    assert (code, summary["units_labeled"], summary["units_reused"]) == (0, 1, units - 1)
    after = contents(labels, but=("ledger.json", "journal", "manifest.json", "index"))
    assert after == before
    assert verified(labels, command)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "cut", "flipped in a value", "not JSON"])
def test_a_lost_manifest_is_rebuilt_from_the_shards(
    labels: Path, source: Path, teacher: Path, command: Command, damage: str
) -> None:
    good = read_manifest(labels)
    path = labels / MANIFEST
    text = path.read_text()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_text(text[:700])
    elif damage == "not JSON":
        path.write_bytes(b"\0" * 100)
    else:
        path.write_text(text.replace('"k": 8', '"k": 9'))
    assert command("verify", labels)[0] == 1
    code, result = command("repair", labels)
    assert (code, result["redo"], result["left"]) == (0, [], [])
    found = read_manifest(labels)
    for name in ("identity", "codec", "status", "plan", "totals", "index_pages", "tokenizer_files"):
        assert getattr(found, name) == getattr(good, name), name
    assert verified(labels, command)
    code, summary = command("label", source, *flags(teacher, labels))
    assert (code, summary["units_labeled"]) == (0, 0)
    code, summary = command("label", source, *flags(teacher, labels), "--append")
    assert (code, summary["units_labeled"], summary["rows"]) == (0, 0, good.totals.rows)


def test_manifest_and_shard_lost_together(
    labels: Path, source: Path, teacher: Path, command: Command
) -> None:
    before = contents(labels, but=("ledger.json", "journal", "manifest.json", "index"))
    (labels / MANIFEST).unlink()
    flip(labels / SHARD)
    code, result = command("repair", labels)
    assert (code, result["redo"]) == (1, [1])
    code, summary = command("label", source, *flags(teacher, labels))
    assert (code, summary["units_labeled"]) == (0, 1)
    assert contents(labels, but=("ledger.json", "journal", "manifest.json", "index")) == before
    assert verified(labels, command)


@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_an_index_is_rebuilt_from_the_journal(labels: Path, command: Command, damage: str) -> None:
    before = contents(labels)
    page = labels / "index/page-000000.parquet"
    flip(page) if damage == "flipped" else page.unlink()
    assert command("verify", labels)[0] == 1
    assert command("repair", labels)[0] == 0
    assert contents(labels) == before
    assert verified(labels, command)


def test_a_lost_journal_entry_is_rebuilt_from_the_index(labels: Path, command: Command) -> None:
    flip(labels / ENTRY)
    (labels / "journal/unit-000000.json").unlink()
    assert not verified(labels, command)
    code, result = command("repair", labels)
    assert (code, result["redo"]) == (0, [])
    assert any("checked against the index" in what for what in result["rebuilt"])
    assert (labels / "quarantine" / ENTRY).is_file()
    assert (labels / "quarantine/ledger.json").is_file()  # it has costs that the entries lost
    assert verified(labels, command)


def test_without_journal_and_index_consistent_shards_are_kept_and_reported_as_such(
    labels: Path, source: Path, teacher: Path, command: Command
) -> None:
    """A shard is then kept if it is self-consistent; one with a flipped bit is not."""
    shutil.rmtree(labels / "index")
    for entry in labels.glob("journal/unit-*.json"):
        entry.unlink()
    flip(labels / SHARD, at=0.2)  # in a page: a footer's only checksums are lost
    code, result = command("repair", labels)
    assert (code, result["redo"]) == (1, [1])
    assert any("only self-consistent" in what for what in result["rebuilt"])
    code, summary = command("label", source, *flags(teacher, labels))
    assert (code, summary["units_labeled"]) == (0, 1)
    assert verified(labels, command)


def test_lost_rejects_are_found_again_by_the_plan(labels: Path, command: Command) -> None:
    flip(labels / REJECTS)
    assert not verified(labels, command)
    code, result = command("repair", labels)
    assert code == 0
    assert any(what.startswith("rejects of units 1") for what in result["rebuilt"])
    assert verified(labels, command)


@pytest.mark.local("a store has no temporary files")
def test_stray_files_are_quarantined(labels: Path, command: Command) -> None:
    strays = ("shards/.tmp-1234-part-000009.parquet", "shards/part-000099.parquet")
    strays += ("plan-0007.parquet",)
    for name in strays:
        (labels / name).write_bytes(b"half")
    code, result = command("repair", labels)
    assert (code, set(result["moved"])) == (0, set(strays))
    assert all(not (labels / name).exists() for name in strays)
    aside = [p.read_bytes() for p in (labels / "quarantine").rglob("*") if p.is_file()]
    assert aside == [b"half"] * 3
    assert verified(labels, command)


@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_tokenizer_files_are_copied_again(
    labels: Path, teacher: Path, tmp_path: Path, command: Command, damage: str
) -> None:
    before = contents(labels)
    file = labels / "tokenizer/tokenizer.json"
    flip(file) if damage == "flipped" else file.unlink()
    assert command("verify", labels)[0] == 1
    code, result = command("repair", labels, "--model", tmp_path)
    assert (code, len(result["left"])) == (1, 1)
    assert "--model" in result["left"][0]
    assert command("repair", labels, "--model", teacher)[0] == 0
    assert contents(labels) == before
    assert verified(labels, command)


def test_a_lost_plan_is_rebuilt_from_good_shards(
    labels: Path, source: Path, teacher: Path, command: Command
) -> None:
    (labels / "plan.parquet").unlink()
    assert not verified(labels, command)
    code, result = command("repair", labels)
    assert (code, result["left"]) == (0, [])
    assert verified(labels, command)
    rows = read_manifest(labels).totals.rows
    code, summary = command("label", source, *flags(teacher, labels))
    assert (code, summary["units_labeled"], summary["rows"]) == (0, 0, rows)
    more = source.parent / "more.jsonl"
    more.write_text(source.read_text() + json.dumps({"id": "new", "text": "a dog ran " * 5}))
    code, summary = command("label", more, *flags(teacher, labels), "--append")
    assert (code, summary["rows"]) == (0, rows + 1)


def test_with_a_lost_plan_lost_units_are_planned_again_from_the_same_input(
    labels: Path, source: Path, teacher: Path, command: Command
) -> None:
    before = contents(labels, but=("ledger.json", "journal", "manifest.json", "index"))
    flip(labels / "plan.parquet")
    flip(labels / SHARD)
    code, result = command("repair", labels)
    assert (code, result["redo"], len(result["left"])) == (1, [1], 1)
    code, summary = command("label", source, *flags(teacher, labels))
    assert (code, summary["units_labeled"]) == (0, 1)
    assert contents(labels, but=("ledger.json", "journal", "manifest.json", "index")) == before
    assert verified(labels, command)


def test_answers_without_manifest_plan_and_journal_are_kept(
    teacher: Path, tmp_path: Path, command: Command
) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "answers"
    rows = [{"id": f"p{i}", "prompt": f"the cat {i} sat"} for i in range(6)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ["--mode", "generate", "--max-tokens", 4, "--samples", 2, "--temperature", 1]
    more += ["--codec", "compact"]
    assert command("label", prompts, *flags(teacher, out), *more)[0] == 0
    (out / "plan.parquet").unlink()
    assert command("repair", out)[0] == 0
    with open_plan(out, read_manifest(out).plan) as plan:
        (unit,) = [read_unit(plan, 0).to_pylist()]
    assert [row["id"] for row in unit] == [row["id"] for row in rows]
    assert all(row["spans"] == [] and row["n_labels"] == 8 for row in unit)
    assert verified(out, command)
    for path in (out / MANIFEST, out / "plan.parquet"):
        path.unlink()
    shutil.rmtree(out / "journal")
    code, result = command("repair", out)
    assert (code, result["redo"]) == (0, [])
    assert verified(out, command)
    assert read_manifest(out).plan is None  # no record says that more rows were planned


def test_nothing_to_rebuild_from_is_an_error(labels: Path, command: Command) -> None:
    (labels / MANIFEST).write_text("{}")
    shutil.rmtree(labels / "shards")
    code, result = command("repair", labels)
    assert code == 2
    assert "nothing to rebuild the manifest from" in result["err"]
