"""Every form of input once, through the command line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas import scan
from schemas.journal import read_rejects
from tests.labeler.command_line import CommandLine
from tests.labeler.conftest import Run
from tests.labeler.hf_dataset import save_dataset, save_dataset_dict
from tests.labeler.labeling.test_formats import FORMS, ROWS, zstd
from tests.labeler.test_cli import assert_one_error, flags
from tests.labeler.web import served

LINE = '{"text": "the cat sat on the mat"}\n'


def label(run: Run, teacher: Path, out: Path, *inputs: object, **options: Any) -> dict[str, Any]:
    done = run("label", *inputs, *flags(teacher, out), "--json", **options)
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def sources(out: Path) -> dict[str, list[str]]:
    """Return the ids of a set's rows by source."""
    rows = scan(out).select("source", "id").sort("source", "id").collect()
    return {name[0]: group["id"].to_list() for name, group in rows.group_by("source")}


def test_every_format_in_one_folder(labeler: CommandLine, teacher: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name, content in FORMS.items():
        (folder / name).write_bytes(content)
    for name, pack in {"a.txt": bytes, "a.txt.gz": gzip.compress, "a.txt.zst": zstd}.items():
        (folder / name).write_bytes(pack(b"the whole file is a document"))
    extra = pa.table({"text": ["a picture"], "picture": [b"\xff\xd8"], "n": [2**40], "no": [None]})
    pq.write_table(extra, folder / "extra.parquet")
    (folder / "bad.jsonl").write_text(LINE + "{]\n" + LINE)
    assert labeler("label", folder, *flags(teacher, out)).code == 0
    expected = {name: [f"{name}:{i}" for i in range(len(ROWS))] for name in FORMS}
    expected |= {name: [f"{name}:0"] for name in ("a.txt", "a.txt.gz", "a.txt.zst")}
    expected |= {"extra.parquet": ["extra.parquet:0"], "bad.jsonl": ["bad.jsonl:0", "bad.jsonl:2"]}
    assert sources(out) == expected
    assert read_rejects(out)["id"].to_pylist() == ["bad.jsonl:1"]
    rows = scan(out).collect().to_dicts()
    # The same document gives the same row in every format.
    same = {json.dumps(row["input_ids"]) for row in rows if row["id"].endswith(":1")}
    assert len({json.dumps(r["input_ids"]) for r in rows if r["id"] == "a.jsonl:1"} & same) == 1
    assert len(same) == 1
    (meta,) = [row["meta"] for row in rows if row["source"] == "extra.parquet"]
    assert json.loads(meta)["n"] == 2**40
    assert "picture" in json.loads(meta)


@pytest.mark.slow
def test_patterns_urls_datasets_and_standard_input_in_one_run(
    run_labeler: Run, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, web, out, temp = (tmp_path / name for name in ("data", "web", "out", "temp"))
    for folder in (data, web, temp):
        folder.mkdir()
    for name in ("p1.jsonl", "p2.jsonl"):
        (data / name).write_text(LINE)
    (data / "other.jsonl").write_text("not matched, and not JSON")
    (data / "url.jsonl").write_text(LINE)
    (web / "w.jsonl.gz").write_bytes(gzip.compress(LINE.encode()))
    pq.write_table(pa.table({"text": ["a table on the web"]}), web / "w.parquet")
    save_dataset(data / "tales", [{"text": "the first"}], [{"text": "the second"}])
    save_dataset_dict(data / "d", {"train": [{"text": "to learn"}], "test": [{"text": "to test"}]})
    monkeypatch.setenv("TMPDIR", str(temp))
    with served(web) as url:
        given = ["-", data / "p*.jsonl", f"file://{data}/url.jsonl", data / "tales", data / "d"]
        inputs = [*given, f"{url}/w.jsonl.gz", f"{url}/w.parquet"]
        first = label(run_labeler, teacher, out, *inputs, input=LINE + LINE)
        again = label(run_labeler, teacher, out, *inputs, input=LINE + LINE)
        other = run_labeler("label", *inputs, *flags(teacher, out), input=LINE, code=2)
    assert sources(out) == {
        "stdin": ["stdin:0", "stdin:1"],
        "p1.jsonl": ["p1.jsonl:0"],
        "p2.jsonl": ["p2.jsonl:0"],
        "url.jsonl": ["url.jsonl:0"],
        "tales": ["tales:0", "tales:1"],
        "train": ["train:0"],
        "test": ["test:0"],
        "w.jsonl.gz": ["w.jsonl.gz:0"],
        "w.parquet": ["w.parquet:0"],
    }
    assert first["units_labeled"] > 0
    assert again["units_labeled"] == 0
    assert "stdin" in other.stderr  # a different standard input is a different corpus
    assert list(temp.glob("softshards-*")) == []


@pytest.mark.slow
def test_generations_of_one_set_scored_as_another(
    run_labeler: Run, teacher: Path, tmp_path: Path
) -> None:
    prompts, student, out = (tmp_path / name for name in ("p.jsonl", "student", "scored"))
    rows = [{"id": f"p{i}", "prompt": "the cat " * (i + 1), "topic": i} for i in range(3)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    generate = ["--mode", "generate", "--samples", "2", "--temperature", "1", "--max-tokens", "6"]
    label(run_labeler, teacher, student, prompts, *generate)
    label(run_labeler, teacher, out, student)
    before = {f"{r['id']}/0/{r['sample']}": r for r in scan(student).collect().to_dicts()}
    after = scan(out).collect().to_dicts()
    assert len(after) == len(before) == 6
    for row in after:
        parent = before[row["parent_id"]]
        assert row["id"] == (row["parent_id"] if parent["sample"] else parent["id"])
        assert row["input_ids"] == parent["input_ids"]
        assert row["spans"] == parent["spans"]
        assert row["prompt"] == parent["prompt"]
        assert row["source"] == "student"
        meta = json.loads(row["meta"])
        assert meta == json.loads(parent["meta"]) | {"generation": parent["generation"]}
        # One teacher made both, so the labels are the same.
        assert row["token_logprob"] == pytest.approx(parent["token_logprob"], abs=2e-2)
    resumed = label(run_labeler, teacher, out, student)
    assert resumed["units_labeled"] == 0


@pytest.mark.parametrize("name", ["cut.jsonl.zst", "cut.json.gz"])
def test_a_truncated_file_stops_the_run(
    labeler: CommandLine, teacher: Path, tmp_path: Path, name: str
) -> None:
    whole = FORMS[name.replace("cut", "a")]
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    done = labeler("label", tmp_path / name, *flags(teacher, tmp_path / "out"))
    assert_one_error(done, "cannot be read")
    assert name in done.err
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("dropbox://corpus/x.jsonl", "pip install dropboxdrivefs"),
        ("gone/*.jsonl", "no file matches"),
    ],
)
def test_missing_inputs(
    labeler: CommandLine, teacher: Path, tmp_path: Path, given: str, message: str
) -> None:
    done = labeler("label", given, *flags(teacher, tmp_path / "out"))
    assert_one_error(done, message)
    assert given in done.err
