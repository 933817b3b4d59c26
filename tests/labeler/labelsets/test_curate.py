"""`labeler curate` keeps the rows that the same rules keep in plain Python."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.runs.label_run import label
from schemas import LabelSet, open_label_set, scan, validate_label_set
from schemas.refusals import REFUSALS
from schemas.verdicts import read_verdicts
from tests.labeler.command_line import CommandLine
from tests.tiny_model import TEXT

Row = dict[str, Any]
WORDS = sorted({word for line in TEXT for word in line.split()})
FLAGS: dict[str, Any] = {"engine": "transformers", "k": 8, "max_length": 200, "unit_labels": 400}


def sentence(seed: int, words: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def records() -> list[Row]:
    """Label good answers, refusals, loops, duplicates and near duplicates, in mixed order."""
    rows = [
        {"id": f"a{i}", "prompt": f"{TEXT[i % 5]} {i}?", "completion": sentence(i, 10 + i)}
        for i in range(16)
    ]
    rows += [{**rows[i], "id": f"{name}{i}"} for i, name in ((3, "z"), (3, "b"), (9, "A"))]
    rows += [
        {**rows[i], "id": f"n{i}", "completion": rows[i]["completion"] + " dog"} for i in (14, 15)
    ]
    refusals = ("I'm sorry, but I can't help with that.", "I cannot answer this question at all.")
    rows += [
        {"id": f"r{i}", "prompt": "why?", "completion": text} for i, text in enumerate(refusals)
    ]
    rows += [{"id": f"l{n}", "prompt": "go on", "completion": "the cat " * n} for n in (8, 20)]
    rows.append(
        {"id": "esc", "prompt": "color", "completion": "\x1b[31mred \x1b]0;owned\x07 \u202e"}
    )
    random.Random(0).shuffle(rows)
    return rows


def made(path: Path, rows: list[Row], teacher: Path, **changes: Any) -> Path:
    source = path.with_suffix(".jsonl")
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    label([str(source)], LabelConfig(model=teacher, out=path, **(FLAGS | changes)))
    return path


@pytest.fixture(scope="module")
def labels(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("labels") / "set", records(), teacher, row_group_labels=90)


@pytest.fixture(scope="module")
def samples(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generate three answers to each of eight prompts."""
    prompts = [{"id": f"p{i}", "prompt": f"{TEXT[i % 5]} {i}"} for i in range(8)]
    return made(
        tmp_path_factory.mktemp("samples") / "set",
        prompts,
        teacher,
        mode="generate",
        samples=3,
        temperature=1.0,
        max_tokens=8,
        unit_labels=64,
    )


def rows_of(path: Path) -> list[Row]:
    """Return all rows with their texts, read with Polars and tokenizers."""
    tokenizer = Tokenizer.from_file(str(open_label_set(path).tokenizer_dir / "tokenizer.json"))
    rows = scan(path).drop("^topk.*$", "tail_logprob", "entropy").collect().to_dicts()
    for row in rows:
        said = [i for s in row["spans"] for i in row["input_ids"][s["start"] : s["stop"]]]
        row["said"], row["answer"] = said, row["generation"] or tokenizer.decode(said)
        row["text"] = tokenizer.decode(row["input_ids"])
    return rows


def key(row: Row) -> tuple[str, int, int]:
    return row["id"], row["chunk"], row["sample"]


def keys(rows: Any) -> list[tuple[str, int, int]]:
    return [key(row) for row in (rows_of(rows) if isinstance(rows, Path) else rows)]


def grams(units: list[Any], n: int) -> list[tuple[Any, ...]]:
    return [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]


def repetition(row: Row, n: int = 4) -> float:
    all_of_them = grams(row["said"], n)
    return 1 - len(set(all_of_them)) / len(all_of_them) if all_of_them else 0.0


def refuses(row: Row) -> bool:
    start = row["answer"][:300]
    return any(re.search(pattern, start, re.I | re.S) for pattern in REFUSALS)


def one_of_each(rows: list[Row], same: Callable[[Row, Row], bool], score: Any) -> list[Row]:
    """Take rows from the best to the worst; keep each that differs from all before it."""
    kept: list[Row] = []
    for row in sorted(rows, key=lambda row: (-score(row), key(row))):
        if not any(same(row, other) for other in kept):
            kept.append(row)
    return [row for row in rows if row in kept]


def near(a: Row, b: Row) -> bool:
    x, y = set(grams(a["input_ids"], 5)), set(grams(b["input_ids"], 5))
    return len(x & y) / max(1, len(x | y)) >= 0.8


HELD_OUT = [sentence(5, 15), sentence(7, 17)[20:], sentence(99, 30)]


def leaks(row: Row) -> bool:
    def words(text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())

    held_out = {gram for text in HELD_OUT for gram in grams(words(text), 13)}
    return any(gram in held_out for gram in grams(words(row["text"]), 13))


RULES: dict[str, tuple[tuple[str, ...], Callable[[list[Row]], list[Row]]]] = {
    "where": (
        ("--where", "mean_nll < 9 and n_tokens > 24", "--where", "id in ('a1','a3','a14','l20')"),
        lambda rows: [
            r
            for r in rows
            if r["mean_nll"] < 9 and r["n_tokens"] > 24 and r["id"] in ("a1", "a3", "a14", "l20")
        ],
    ),
    "computed": (
        ("--where", "kind = 'answer' and answer like '%cat%' and text not like '%dog%'"),
        lambda rows: [r for r in rows if "cat" in r["answer"] and "dog" not in r["text"]],
    ),
    "repetition": (
        ("--max-repetition", "0.3"),
        lambda rows: [r for r in rows if repetition(r) <= 0.3],
    ),
    "refusals": (
        ("--refusals", "--refusal-pattern", "(?i)^the CAT"),
        lambda rows: [r for r in rows if not refuses(r) and not r["answer"].startswith("the cat")],
    ),
    "decontaminate": (
        ("--decontaminate", "heldout.jsonl"),
        lambda rows: [r for r in rows if not leaks(r)],
    ),
    "exact": (
        ("--dedup", "exact", "--score", "-mean_nll"),
        lambda rows: one_of_each(
            rows, lambda a, b: a["input_ids"] == b["input_ids"], lambda r: -r["mean_nll"]
        ),
    ),
    "near": (("--dedup", "near"), lambda rows: one_of_each(rows, near, lambda _: 0)),
}


def held_out_file() -> None:
    rows = [{"q": {"text": [text]}, "n": 1} for text in HELD_OUT] + [{"q": "short"}]
    Path("heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("name", RULES)
def test_each_rule_keeps_what_plain_python_keeps(
    name: str, labels: Path, labeler: CommandLine
) -> None:
    held_out_file()
    flags, expected = RULES[name]
    report = labeler("curate", labels, "--out", "v.view.json", "--json", *flags).json
    rows = rows_of(labels)
    left = expected(rows)
    assert 0 < len(left) < len(rows), "the rule removes rows"
    assert keys(Path("v.view.json")) == keys(left)
    assert report["after"] == {
        "rows": len(left),
        "labels": sum(r["n_labels"] for r in left),
        "tokens": sum(r["n_tokens"] for r in left),
    }
    assert not list(validate_label_set(open_label_set("v.view.json")))


def test_rules_compose_in_order_and_are_counted_alone(labels: Path, labeler: CommandLine) -> None:
    held_out_file()
    flags = ["--where", "mean_nll < 9 and n_tokens > 24", "--score", "-mean_nll"]
    for name in ("computed", "repetition", "refusals", "decontaminate", "near"):
        flags += RULES[name][0]
    report = labeler("curate", labels, "--out", "v.view.json", "--json", *flags).json
    names = ["where", "where", "max-repetition", "refusals", "refusal-pattern", "decontaminate"]
    assert [rule["rule"] for rule in report["rules"]] == [*names, "dedup"]
    left = rows_of(labels)
    everyone = list(left)
    steps: list[Callable[[list[Row]], list[Row]]] = [
        lambda rows: [r for r in rows if r["mean_nll"] < 9 and r["n_tokens"] > 24],
        RULES["computed"][1],
        RULES["repetition"][1],
        lambda rows: [r for r in rows if not refuses(r)],
        lambda rows: [r for r in rows if not r["answer"].startswith("the cat")],
        RULES["decontaminate"][1],
        lambda rows: one_of_each(rows, near, lambda r: -r["mean_nll"]),
    ]
    for rule, step in zip(report["rules"], steps, strict=True):
        before, left = left, step(left)
        assert rule["removed"]["rows"] == len(before) - len(left), rule
        assert rule["removed"]["labels"] == sum(r["n_labels"] for r in before if r not in left)
        assert rule["alone"]["rows"] == len(everyone) - len(step(everyone)), rule
        gone = ["/".join(map(str, key(r))) for r in before if r not in left]
        assert [example["row"] for example in rule["examples"]] == gone[:3]
    assert keys(Path("v.view.json")) == keys(left)
    view = open_label_set("v.view.json").view
    assert view is not None
    rules = [rule | {"faults": len(rule["faults"])} for rule in report["rules"]]
    assert view.made["rules"] == rules, "the view records how it was made"


def test_overlap_templates_and_tokens(labels: Path, labeler: CommandLine) -> None:
    """A set overlaps completely with itself as held-out text; templates can be ignored."""
    base = ("curate", labels, "--out", "v.view.json", "--json", "--dry-run", "--decontaminate")
    rows = rows_of(labels)
    for unit in ("words", "tokens"):
        report = labeler(*base, labels, "--ngram-of", unit).json
        long = [r for r in rows if len(grams(_units(r, unit), 13))]
        assert report["rules"][0]["removed"]["rows"] == len(long)
        # A share of shared n-grams of up to 1 allows every row.
        assert labeler(*base, labels, "--ngram-of", unit, "--overlap", 1).json["after"][
            "rows"
        ] == len(rows)
    documents = defaultdict(set)
    for row in rows:
        for gram in grams(_units(row, "words"), 13):
            documents[gram].add(row["id"])
    rare = {gram for gram, ids in documents.items() if len(ids) <= 1}
    report = labeler(*base, labels, "--common", 1).json
    expected = [r for r in rows if set(grams(_units(r, "words"), 13)) & rare]
    assert report["rules"][0]["removed"]["rows"] == len(expected) < len(rows)


def _units(row: Row, unit: str) -> list[Any]:
    return re.findall(r"\w+", row["text"].lower()) if unit == "words" else row["input_ids"]


def test_a_view_of_a_view_is_a_view_of_the_set(labels: Path, labeler: CommandLine) -> None:
    labeler("curate", labels, "--out", "a/one.view.json", "--where", "n_tokens > 30")
    done = labeler(
        "curate", "a/one.view.json", "--out", "b/two.view.json", "--where", "mean_nll < 9"
    )
    assert done.code == 0, done.err
    both = ("--where", "n_tokens > 30", "--where", "mean_nll < 9")
    labeler("curate", labels, "--out", "both.view.json", *both)
    two, at_once = open_label_set("b/two.view.json"), open_label_set("both.view.json")
    assert two.content_digest == at_once.content_digest
    assert two.view is not None
    assert two.view.made["of"]["rules"][0]["setting"] == "n_tokens > 30"
    os.rename("a", "elsewhere")  # noqa: PTH104
    assert open_label_set("b/two.view.json").rows == two.rows > 0


VERIFIER = """
import os, time
def check(row):
    with open("calls", "a") as log:
        log.write(f"{row['id']}/{row['sample']}\\n")
    print("noise on standard output")
    if row["id"] == "p1": time.sleep(60)
    if row["id"] == "p2": os._exit(3)
    if row["id"] == "p3": raise ValueError("no such thing")
    if row["id"] == "p4": return False
    if row["id"] == "p5": return "yes"
    return float(len(row["answer"]) + 100 * row["sample"])
def slow(row):
    with open("calls", "a") as log:
        log.write(f"{row['id']}/{row['sample']}\\n")
    time.sleep(0.15)  # verdicts are committed once a second
    while open("calls").read().count("\\n") > 12 and not os.path.exists("go"):
        time.sleep(0.01)
    return row["sample"] != 1
"""


@pytest.mark.slow
def test_a_verifier_selects_the_best_and_its_faults_cost_one_row(
    samples: Path, labeler: CommandLine
) -> None:
    Path("judge.py").write_text(VERIFIER)
    command = ("curate", samples, "--out", "v.view.json", "--json", "--verify", "judge:check")
    command = (*command, "--verify-timeout", 3, "--best-of", 1, "--where", "id != 'p7'")
    report = labeler(*command).json
    rows = [row for row in rows_of(samples) if row["id"] in ("p0", "p6")]
    best = one_of_each(
        rows, lambda a, b: a["id"] == b["id"], lambda r: len(r["answer"]) + 100 * r["sample"]
    )
    assert keys(Path("v.view.json")) == keys(best)
    verify = report["rules"][1]
    assert verify["alone"] is None, "rows that other rules removed are not verified"
    assert verify["removed"]["rows"] == 15
    faults = {name.split("/")[0]: why for name, why in verify["faults"].items()}
    assert faults == {
        "p1": "time limit of 3 s",
        "p2": "its process died (exit code 3)",
        "p3": "ValueError: no such thing",
        "p5": "returned 'yes', neither true or false nor a number",
    }
    calls = Path("calls").read_text()
    assert labeler(*command).json == report
    assert Path("calls").read_text() == calls, "stored verdicts are used"
    assert labeler(*command, "--verdicts", "v.jsonl").json == report
    verdicts = read_verdicts(Path("v.jsonl"))
    assert verdicts.by == "judge:check"
    assert verdicts.identity_digest == open_label_set(samples).manifest.identity_digest
    assert {row.id: row.fault for row in verdicts.rows.values() if row.fault} == faults
    assert sum(row.passed for row in verdicts.rows.values()) == len(rows)
    Path("judge.py").write_text(VERIFIER.replace("return False", "return True"))
    assert labeler(*command).json["rules"][1]["removed"]["rows"] == 12, "a new verifier runs"


@pytest.mark.slow
def test_an_interrupted_verification_resumes(samples: Path, tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text(VERIFIER)
    command = [sys.executable, "-m", "labeler", "curate", str(samples), "--out", "v.view.json"]
    command += ["--verify", "judge:slow", "--verify-jobs", "1", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    started: dict[str, Any] = {"cwd": tmp_path, "env": environment, "text": True}
    first = subprocess.Popen(command, **started, start_new_session=True)
    log = tmp_path / "calls"
    stored = 0
    while not stored and first.poll() is None:
        time.sleep(0.02)
        stored = _verdicts(tmp_path / "v.verdicts.sqlite")
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "v.view.json").exists()
    assert 0 < stored < 24
    log.unlink()
    (tmp_path / "go").touch()
    done = subprocess.run(command, **started, capture_output=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["after"]["rows"] == 16
    assert len(log.read_text().splitlines()) <= 24 - stored


def _verdicts(path: Path) -> int:
    import sqlite3

    if not path.is_file():
        return 0
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        try:
            return db.execute("select count(*) from verdicts").fetchone()[0]
        except sqlite3.OperationalError:
            return 0


@pytest.mark.slow
def test_a_command_verifies(samples: Path, labeler: CommandLine) -> None:
    script = "import json,sys; r=json.load(sys.stdin); sys.exit('no') if r['sample']==1 else None; "
    script += "print(r['sample'] * 2)"
    Path("judge.py").write_text(script)
    flags = ("--verify-command", f"{sys.executable} judge.py", "--verify-min", 2)
    report = labeler("curate", samples, "--out", "v.view.json", "--json", *flags).json
    assert {sample for _, _, sample in keys(Path("v.view.json"))} == {2}
    assert set(report["rules"][0]["faults"].values()) == {"exit code 1: no"}
    hanging = ("--verify-command", "sleep 60", "--verify-timeout", 0.2, "--verify-jobs", 24)
    done = labeler("curate", samples, "--out", "w.view.json", *hanging, "--verdicts", "w.jsonl")
    assert (done.code, "no row is left" in done.err) == (2, True)
    assert "time limit of 0.2 s" in done.out
    verdicts = read_verdicts(Path("w.jsonl")).rows.values()
    assert (len(verdicts), any(row.passed for row in verdicts)) == (24, False)


def test_a_split_is_by_id_and_stable_when_rows_are_added(
    teacher: Path, labeler: CommandLine, tmp_path: Path
) -> None:
    docs = [{"id": f"d{i}", "text": sentence(i, 60)} for i in range(30)]
    path = made(tmp_path / "docs", docs[:20], teacher, max_length=64)
    split = ("--split", "heldout=0.3", "--split", "test=0.2", "--seed", 3)
    first = labeler("curate", path, "--out", "s.view.json", "--json", *split).json
    assert sorted(first["views"]) == ["heldout", "test", "train"]
    parts = {name: keys(Path(f"s.{name}.view.json")) for name in first["views"]}
    assert sorted(k for part in parts.values() for k in part) == sorted(keys(path))
    sides = defaultdict(set)
    for name, part in parts.items():
        for record, _, _ in part:
            sides[record].add(name)
    assert max(chunk for part in parts.values() for _, chunk, _ in part) > 0
    assert all(len(names) == 1 for names in sides.values())
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(d) + "\n" for d in docs[20:]))
    settings = LabelConfig(model=teacher, out=path, append=True, **(FLAGS | {"max_length": 64}))
    label([str(tmp_path / "more.jsonl")], settings)
    assert open_label_set("s.train.view.json").rows == len(parts["train"]), "old views still open"
    labeler("curate", path, "--out", "t.view.json", *split)
    for name, part in parts.items():
        later = keys(Path(f"t.{name}.view.json"))
        old = [k for k in later if int(k[0][1:]) < 20]
        assert old == part
        assert name == "test" or len(later) > len(old), "new rows are distributed, too"


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["plain", "compact"])
def test_the_materialized_set_is_the_view(codec: str, labels: Path, labeler: CommandLine) -> None:
    command = ("curate", labels, "--out", "v.view.json", "--where", "n_tokens > 30", "--json")
    report = labeler(*command, "--materialize", "copy", "--codec", codec).json
    assert report["materialized"] == {"": "copy"}
    view, copy = open_label_set("v.view.json"), open_label_set("copy")
    assert copy.manifest.codec == f"{codec}/1"
    assert copy.rows == view.rows < open_label_set(labels).rows
    assert not list(validate_label_set(copy))
    drop = () if codec == "plain" else ("topk_ids", "topk_logprobs")
    assert tables(copy, drop) == tables(view, drop)
    origin = copy.manifest.provenance["derived"]["from"][0]
    assert origin["view"]["rules"][0]["setting"] == "n_tokens > 30"
    assert labeler(*command, "--materialize", "copy", "--codec", codec).code == 0


def tables(labels: LabelSet, drop: tuple[str, ...]) -> list[Row]:
    groups = [labels.read_row_group(group).drop(list(drop)) for group in labels.row_groups]
    return [row for group in groups for row in group.to_pylist()]


@pytest.mark.slow
def test_the_other_commands_take_a_view(labels: Path, teacher: Path, labeler: CommandLine) -> None:
    labeler("curate", labels, "--out", "v.view.json", "--where", "n_tokens > 30")
    view = Path("v.view.json")
    rows = open_label_set(view).rows
    assert labeler("inspect", view, "--json").json["rows"] == rows
    assert labeler("verify", view, "--json").code == 0
    assert labeler("convert", view, "compact", "--json").json["rows"] == rows
    compared = labeler("compare", view, labels, "--json").json
    assert compared["rows"] == rows
    flags = ("--engine", "transformers", "--k", 4, "--max-length", 200, "--json")
    again = labeler("label", view, "--model", teacher, "--out", "again", *flags).json
    assert again["rows"] == rows
    parents = {row["parent_id"] for row in rows_of(Path("again"))}
    assert parents == {"/".join(map(str, k)) for k in keys(view)}
    lineage = open_label_set("again").manifest.provenance["parents"][0]
    assert lineage["view"]["rules"][0]["setting"] == "n_tokens > 30"
    # A view in a folder of data is not an input, and neither is a label set.
    Path("data").mkdir()
    shutil.copy(view, "data/v.view.json")
    Path("data/x.txt").write_text(TEXT[0])
    shutil.copytree("compact", "data/compact")
    only = labeler("label", "data", "--model", teacher, "--out", "from-folder", *flags).json
    assert only["rows"] == 1
    derived = labeler("label", "compact", "--model", teacher, "--out", "third", *flags).json
    assert derived["rows"] == rows


@pytest.mark.slow
def test_nothing_is_written_in_a_dry_run(samples: Path, labeler: CommandLine) -> None:
    Path("judge.py").write_text(VERIFIER)
    Path("go").touch()  # nothing to wait for
    flags = ("--verify", "judge:slow", "--split", "heldout=0.5", "--dry-run")
    before = {*Path().iterdir()}
    done = labeler("curate", samples, "--out", "sub/v.view.json", *flags)
    assert done.code == 0, done.err
    assert "would be a view" in done.out
    assert {path.name for path in {*Path().iterdir()} - before} <= {"calls", "__pycache__"}


def test_text_of_a_corpus_cannot_control_the_terminal(labels: Path, labeler: CommandLine) -> None:
    done = labeler("curate", labels, "--out", "v.view.json", "--where", "id != 'esc'")
    assert "\\x1b[31mred" in done.out
    assert not {"\x1b", "\x07", "\u202e"} & {*done.out}


def test_label_columns_are_not_read_and_pages_that_are_read_are_checked(
    labels: Path, labeler: CommandLine, tmp_path: Path
) -> None:
    path = tmp_path / "damaged"
    shutil.copytree(labels, path)
    shard = sorted((path / "shards").iterdir())[0]
    group = pq.ParquetFile(shard).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}

    def flip(column: str) -> None:
        data = bytearray(shard.read_bytes())
        chunk = columns[column]
        data[
            chunk.file_offset + chunk.total_compressed_size - 3
            if chunk.file_offset
            else chunk.data_page_offset + chunk.total_compressed_size - 3
        ] ^= 0xFF
        shard.write_bytes(data)

    held_out_file()
    flags = ("--max-repetition", 0.3, "--refusals", "--dedup", "near", "--where", "mean_nll < 9")
    flags = (*flags, "--decontaminate", "heldout.jsonl")
    flip("topk_logprobs.list.element.list.element")
    assert labeler("curate", path, "--out", "v.view.json", *flags).code == 0
    assert labeler("verify", path).code == 1
    flip("mean_nll")
    done = labeler("curate", path, "--out", "v.view.json", *flags)
    assert (done.code, "was altered" in done.err) == (2, True), done.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--where", "mean_nl < 3"), "did you mean mean_nll"),
        (("--where", "avg(mean_nll) < 3"), "aggregates many rows"),
        (("--where", "mean_nll"), "not true or false"),
        (("--where", "mean_nll <"), "hint: give one SQL expression"),
        (("--score", "mean_entrop", "--best-of", 1), "did you mean mean_entropy"),
        (("--score", "verdict", "--best-of", 1), "there is no column verdict"),
        (("--best-of", 1), "needs to know what is best"),
        (("--refusal-pattern", "("), "not a regular expression"),
        (("--verify", "nowhere:check"), "No module named 'nowhere'"),
        (("--verify-command", "no-such-program -x"), "no such program"),
        (("--split", "train=0.5"), "not a valid part"),
        (("--split", "a=0.5", "--split", "b=0.6"), "leave something"),
        (("--where", "n_tokens > 1000000"), "no row is left"),
        (("--decontaminate", "short.txt"), "no held-out record has 13 consecutive words"),
        (("--codec", "plain"), "needs --materialize"),
        (("--dedup", "near", "--similarity", 1.5), "is a share"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_errors_have_a_hint(
    flags: tuple[object, ...], message: str, labels: Path, labeler: CommandLine
) -> None:
    Path("short.txt").write_text("too short\n")
    done = labeler("curate", labels, "--out", "v.view.json", *flags)
    assert done.code == 2
    assert message in done.err
    assert not Path("v.view.json").exists()


def test_settings_come_from_a_file(labels: Path, labeler: CommandLine) -> None:
    Path("c.yaml").write_text("where: ['n_tokens > 30', 'mean_nll < 9']\ndedup: exact\n")
    labeler("curate", labels, "--config", "c.yaml", "--out", "a.view.json")
    flags = ("--where", "n_tokens > 30", "--where", "mean_nll < 9", "--dedup", "exact")
    labeler("curate", labels, "--out", "b.view.json", *flags)
    a, b = (open_label_set(f"{name}.view.json") for name in "ab")
    assert a.content_digest == b.content_digest
    refused = labeler("curate", labels, "--out", "no-view.json")
    assert (refused.code, ".view.json" in refused.err) == (2, True)
