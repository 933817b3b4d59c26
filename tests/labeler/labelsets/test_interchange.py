"""`labeler export` and `labeler import`: round trips through the files of other tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tokenizers import Tokenizer

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.runs.label_run import label
from schemas import PAD_ID, Labels, decode, open_label_set
from schemas.fingerprint import weights_digest
from schemas.journal import entry_path, read_rejects
from tests.labeler.command_line import CommandLine
from tests.tiny_model import TEXT

SUFFIX = {"distillkit": ".parquet", "axolotl": ".parquet", "jsonl": ".jsonl.zst"}
K = 12


@pytest.fixture(scope="module")
def source(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Label documents and answers, with lists of 3 to 12 ids."""
    folder = tmp_path_factory.mktemp("source")
    rows: list[dict[str, Any]] = [{"id": f"doc{i}", "text": TEXT[i]} for i in range(4)]
    rows += [{"id": f"qa{i}", "prompt": TEXT[i], "completion": " " + TEXT[i + 1]} for i in range(4)]
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = LabelConfig(
        model=teacher,
        out=folder / "labels",
        engine="transformers",
        k=K,
        top_p_labels=0.5,
        min_k=3,
        max_length=64,
        unit_labels=100,
    )
    label([str(corpus)], settings)
    return folder / "labels"


def rows_of(path: Path) -> list[tuple[dict[str, Any], Labels]]:
    labels = open_label_set(path)
    found = []
    for group in labels.row_groups:
        table = labels.read_row_group(group)
        decoded = decode(table)
        for i, row in enumerate(table.to_pylist()):
            found.append((row, decoded.labels[decoded.offsets[i] : decoded.offsets[i + 1]]))
    return found


def places(row: dict[str, Any]) -> list[int]:
    return [t for span in row["spans"] for t in range(span["start"], span["stop"])]


def assert_same_rows(before: Path, after: Path, *, kinds: bool) -> None:
    old, new = rows_of(before), rows_of(after)
    assert len(old) == len(new)
    for (row, labels), (again, others) in zip(old, new, strict=True):
        assert row["input_ids"] == again["input_ids"]
        assert places(row) == places(again)
        if kinds:
            assert row["spans"] == again["spans"]
            assert row["id"] == again["id"]
            np.testing.assert_array_equal(labels.tail_logprob, others.tail_logprob)
            np.testing.assert_array_equal(labels.token_logprob, others.token_logprob)
            assert row["mean_nll"] == pytest.approx(again["mean_nll"], abs=1e-3)
        width = max(labels.topk_ids.shape[1], others.topk_ids.shape[1])
        a, b = (wide(x, width) for x in (labels, others))
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])


def wide(labels: Labels, k: int) -> tuple[np.ndarray, np.ndarray]:
    more = ((0, 0), (0, k - labels.topk_ids.shape[1]))
    ids = np.pad(labels.topk_ids, more, constant_values=PAD_ID)
    return ids, np.pad(labels.topk_logprobs, more, constant_values=-np.inf)


@pytest.mark.parametrize("format", SUFFIX)
def test_round_trip(
    format: str, source: Path, teacher: Path, tmp_path: Path, labeler: CommandLine
) -> None:
    file, out = tmp_path / f"rows{SUFFIX[format]}", tmp_path / "out"
    facts = labeler("export", source, file, "--format", format, "--json").json
    labels = open_label_set(source)
    assert (facts["rows"], facts["labels"]) == (labels.rows, labels.labels)
    assert bool(facts["loses"]) == (format != "jsonl")
    assert json.loads((tmp_path / f"{file.name}.softshards.json").read_text()) == facts
    assert facts["identity_digest"] == labels.manifest.identity_digest
    done = labeler("import", file, "--out", out, "--tokenizer", teacher, "--teacher", teacher)
    assert done.code == 0, done.err
    assert_same_rows(source, out, kinds=format == "jsonl")
    assert labeler("verify", out).code == 0
    identity = open_label_set(out).manifest.identity
    assert (identity.weights, identity.weights_scope) == (weights_digest(teacher), "full")
    assert identity.k == K
    assert (identity.dtype, identity.rendering) == ("unknown", {"imported": format})
    unknown = [row["mean_nll"] is None for row, _ in rows_of(out)]
    assert any(unknown) == (format != "jsonl"), "the mean of unknown values is unknown"


def test_a_compact_set_exports_like_its_plain_conversion(
    source: Path, tmp_path: Path, labeler: CommandLine
) -> None:
    compact, plain = tmp_path / "compact", tmp_path / "plain"
    assert labeler("convert", source, compact).code == 0
    assert labeler("convert", compact, plain, "--codec", "plain").code == 0
    for name in ("compact", "plain"):
        file = tmp_path / f"{name}.jsonl"
        assert labeler("export", tmp_path / name, file, "--format", "jsonl").code == 0
    assert (tmp_path / "compact.jsonl").read_bytes() == (tmp_path / "plain.jsonl").read_bytes()


@pytest.mark.parametrize("format", ["distillkit", "axolotl"])
def test_an_entry_holds_the_models_output_at_its_index(
    format: str, source: Path, teacher: Path, tmp_path: Path, labeler: CommandLine
) -> None:
    """The trainers gather the student's logits at t by the ids at t.

    Here the student is the teacher itself: its probabilities at t must be the file's, and at no
    other index.
    """
    import torch
    from transformers import AutoModelForCausalLM

    file = tmp_path / "rows.parquet"
    assert labeler("export", source, file, "--format", format).code == 0
    model = AutoModelForCausalLM.from_pretrained(teacher)
    names = {
        "distillkit": ("token_ids", "top_values"),
        "axolotl": ("target_token_ids", "target_logprobs"),
    }[format]
    seen = 0
    for row in pq.read_table(file).to_pylist():
        tokens = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            student = model(tokens).logits[0].log_softmax(-1)
        ids, values = (torch.tensor(row[name]) for name in names)
        assert ids.shape == values.shape == (len(row["input_ids"]), K)
        there = student.gather(1, ids)
        labels = np.array(row["labels"])
        if format == "axolotl":
            mask = torch.tensor(row["target_mask"]).bool()
            shifted = np.append(labels[1:], -100)  # as transformers shifts labels
            np.testing.assert_array_equal(mask.any(1).numpy(), shifted != -100)
            assert row["attention_mask"] == [1] * len(labels)
        else:
            mask = torch.tensor(labels >= 0)[:, None] & (values > -1e4)
            # DistillKit masks by labels at the same index: a distribution must be there
            np.testing.assert_array_equal(mask.any(1).numpy(), labels >= 0)
        assert torch.allclose(there[mask], values[mask], atol=0.01)
        moved = student.roll(1, 0).gather(1, ids)
        assert not torch.allclose(moved[mask], values[mask], atol=0.5)
        assert torch.isfinite(values).all()
        seen += int(mask.any(1).sum())
    assert seen == open_label_set(source).labels


def test_trl_text_gives_the_teachers_ids(
    source: Path, teacher: Path, tmp_path: Path, labeler: CommandLine
) -> None:
    file = tmp_path / "rows.jsonl.zst"
    facts = labeler("export", source, file, "--format", "trl", "--json").json
    assert facts["rows_of_other_ids"] == 0
    text = zstandard.ZstdDecompressor().stream_reader(file.open("rb")).read().decode()
    tokenizer = Tokenizer.from_file(str(teacher / "tokenizer.json"))
    lines = [json.loads(line) for line in text.splitlines()]
    stored = rows_of(source)
    assert len(lines) == len(stored)
    for line, (row, _) in zip(lines, stored, strict=True):
        assert set(line) == {"prompt", "completion"}
        assert tokenizer.encode(line["prompt"] + line["completion"]).ids == row["input_ids"]
        prompt = tokenizer.encode(line["prompt"]).ids
        document = row["id"].startswith("doc")
        assert len(prompt) == (0 if document else row["spans"][0]["start"])


# Files written by hand, after the formats' documentation.

TOKENS = [10, 20, 30, 40, 50, 60, 70, 80]


def distribution(token: int, k: int = 3) -> tuple[list[int], list[float]]:
    """Return ids and logprobs with the actual token first, and a mass below 1."""
    logprobs = np.log([0.6, 0.2, 0.1][:k]).tolist()
    return [token, 7, 8][:k], logprobs


def distillkit_row(tokens: list[int] = TOKENS) -> dict[str, Any]:
    """Return a row of vLLM's prompt logprobs without the first: entry t is for token t + 1."""
    top = [distribution(token) for token in tokens[1:]]
    return {
        "input_ids": tokens,
        "token_ids": [ids for ids, _ in top],
        "top_values": [values for _, values in top],
    }


def axolotl_row(tokens: list[int] = TOKENS, *, answer: int = 3) -> dict[str, Any]:
    """Return a row as in axolotl's README.

    Entry j is for input_ids[j + 1], its mask is 0 where labels[j + 1] is -100, and the last entry
    is padding.
    """
    top = [distribution(token) for token in tokens[1:]] + [([0, 0, 0], [-1e9] * 3)]
    labels = [-100] * answer + tokens[answer:]
    mask = [[int(label != -100)] * 3 for label in labels[1:]] + [[0] * 3]
    return {
        "input_ids": tokens,
        "attention_mask": [1] * len(tokens),
        "labels": labels,
        "target_token_ids": [ids for ids, _ in top],
        "target_logprobs": [values for _, values in top],
        "target_mask": mask,
    }


def jsonl_row(tokens: list[int] = TOKENS, **changes: Any) -> dict[str, Any]:
    top = [distribution(token) for token in tokens[1:]]
    return {
        "input_ids": tokens,
        "spans": [{"start": 1, "stop": len(tokens)}],
        "topk_ids": [ids for ids, _ in top],
        "topk_logprobs": [values for _, values in top],
    } | changes


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


HAND = {"distillkit": distillkit_row, "axolotl": axolotl_row, "jsonl": jsonl_row}


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("format", HAND)
def test_a_file_written_by_hand(
    format: str, suffix: str, teacher: Path, tmp_path: Path, labeler: CommandLine
) -> None:
    file, out = write(tmp_path / f"hand{suffix}", [HAND[format]()]), tmp_path / "out"
    flags = ("--tokenizer", teacher, "--teacher", "someone/their-model", "--kind", "answer")
    facts = labeler("import", file, "--out", out, *flags, "--dtype", "bfloat16", "--json").json
    start = 3 if format == "axolotl" else 1
    assert (facts["format"], facts["k"], facts["labels"]) == (format, 3, len(TOKENS) - start)
    [(row, labels)] = rows_of(out)
    kind = "text" if format == "jsonl" else "answer"
    assert row["spans"] == [{"start": start, "stop": 8, "kind": kind}]
    assert row["id"] == f"{file.name}:0"
    assert labels.topk_ids.tolist() == [[token, 7, 8] for token in TOKENS[start:]]
    np.testing.assert_allclose(np.exp(labels.topk_logprobs), [[0.6, 0.2, 0.1]] * len(labels), 1e-3)
    np.testing.assert_allclose(np.exp(labels.tail_logprob), 0.1, rtol=1e-3)
    np.testing.assert_allclose(np.exp(labels.token_logprob), 0.6, rtol=1e-3)
    assert row["mean_nll"] == pytest.approx(-np.log(0.6), abs=1e-3)
    manifest = open_label_set(out).manifest
    assert (manifest.identity.weights_scope, manifest.identity.dtype) == ("stated", "bfloat16")
    assert manifest.provenance["teacher"] == "someone/their-model"
    assert manifest.provenance["tail_source"].startswith("imported:derived")
    assert labeler("verify", out).code == 0


@pytest.mark.parametrize("format", SUFFIX)
def test_round_trip_of_odd_rows(
    format: str, teacher: Path, tmp_path: Path, labeler: CommandLine
) -> None:
    """Rows without a label, with one token, in two spans, with lists of 1 to 3 ids."""
    top = [distribution(token, k) for token, k in zip((20, 30, 70), (1, 3, 2), strict=True)]
    none: dict[str, Any] = {"spans": [], "topk_ids": [], "topk_logprobs": []}
    two = [{"start": 1, "stop": 3, "kind": "answer"}, {"start": 6, "stop": 7, "kind": "answer"}]
    rows = [
        jsonl_row([5, 6], id="empty", **none),
        jsonl_row(
            id="ragged",
            spans=two,
            topk_ids=[ids for ids, _ in top],
            topk_logprobs=[values for _, values in top],
        ),
        jsonl_row([9], id="one", **none),
    ]
    flags = ("--tokenizer", teacher, "--teacher", "unknown")
    first, again = tmp_path / "first", tmp_path / "again"
    file = write(tmp_path / "odd.jsonl", rows)
    assert labeler("import", file, "--out", first, *flags).code == 0
    assert [row["n_labels"] for row, _ in rows_of(first)] == [0, 3, 0]
    exported = tmp_path / f"odd{SUFFIX[format]}"
    assert labeler("export", first, exported, "--format", format).code == 0
    assert labeler("import", exported, "--out", again, *flags).code == 0
    old, new = rows_of(first), rows_of(again)
    for (row, labels), (other, others) in zip(old, new, strict=True):
        assert (row["input_ids"], places(row)) == (other["input_ids"], places(other))
        np.testing.assert_array_equal(labels.topk_ids, others.topk_ids)
        np.testing.assert_array_equal(labels.topk_logprobs, others.topk_logprobs)
    assert labeler("verify", again).code == 0


def test_shifted_labels_are_refused_and_named(
    teacher: Path, tmp_path: Path, labeler: CommandLine
) -> None:
    """Older axolotl data has the distribution of token t at entry t."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(8):
        row = axolotl_row(rng.integers(10, 250, 30).tolist())
        for name in ("target_token_ids", "target_logprobs", "target_mask"):
            row[name] = row[name][-1:] + row[name][:-1]
        rows.append(row)
    file, out = write(tmp_path / "old.parquet", rows), tmp_path / "out"
    flags = ("--tokenizer", teacher, "--teacher", "unknown", "--out", out)
    for more in ((), ("--dry-run",)):
        refused = labeler("import", file, *flags, *more)
        assert refused.code == 2
        assert "look shifted" in refused.err
        assert "hint: give --shift 0" in refused.err
        assert not out.exists()
    assert labeler("import", file, *flags, "--shift", 0).code == 0
    assert [places(row) for row, _ in rows_of(out)] == [list(range(3, 30))] * 8
    wrong = tmp_path / "wrong"
    allowed = labeler("import", file, *flags[:-1], wrong, "--allow", "shift")
    assert allowed.code == 0
    assert open_label_set(wrong).manifest.provenance["derived"]["allow"] == ["shift"]


def test_bad_rows_are_rejects(teacher: Path, tmp_path: Path, labeler: CommandLine) -> None:
    logs = jsonl_row()["topk_logprobs"]
    bad = {
        "a label's id is outside": jsonl_row(topk_ids=[[9999, 7, 8]] * 7),
        "an input id is outside": jsonl_row([10, 99999]),
        "a label's id is negative": jsonl_row(topk_ids=[[-1, 7, 8]] * 7),
        "a logprob is not a number at position 1": jsonl_row(
            topk_logprobs=[[float("nan"), -2, -3], *logs[1:]]
        ),
        "a logprob is above 0": jsonl_row(topk_logprobs=[*logs[:-1], [12.5, 1, 1]]),
        "probabilities add up to": jsonl_row(topk_logprobs=[*logs[:-1], [-0.1, -0.1, -0.1]]),
        "a label repeats an id at position 1": jsonl_row(topk_ids=[[7, 7, 8]] * 7),
        "differ in shape": jsonl_row(topk_logprobs=logs[:-1]),
        "spans cover 6 positions": jsonl_row(spans=[{"start": 2, "stop": 8}]),
        "outside 1..8": jsonl_row(spans=[{"start": 2, "stop": 9}]),
        "values of tail_logprob": jsonl_row(tail_logprob=[-2.3]),
        "do not sum to one": jsonl_row(tail_logprob=[-0.1] * 7),
        "token_logprob differs from": jsonl_row(
            token_logprob=[-3.0] * 7, tail_logprob=[float(np.log(0.1))] * 7
        ),
        "input_ids is missing": {n: v for n, v in jsonl_row().items() if n != "input_ids"},
        "spans cover 0 positions": {n: v for n, v in jsonl_row().items() if n != "spans"},
        "spans are not objects": jsonl_row(spans=[[1, 8]]),
        "topk_ids is not a list": jsonl_row(topk_ids="x"),
        "it has no tokens": jsonl_row(input_ids=[]),
        "is not JSON": {},
        "id occurs twice": jsonl_row(id="good0"),
    }
    turned = jsonl_row(
        id="turned",
        topk_ids=[ids[::-1] for ids in jsonl_row()["topk_ids"]],
        topk_logprobs=[values[::-1] for values in logs],
    )
    good = [jsonl_row(id=f"good{i}") for i in range(3)]
    lines = [json.dumps(row) for row in [turned, *good, *bad.values()]]
    lines[4 + list(bad).index("is not JSON")] = "{not json"
    file, out = tmp_path / "rows.jsonl", tmp_path / "out"
    file.write_text("\n".join(lines) + "\n")
    flags = ("--tokenizer", teacher, "--teacher", "unknown", "--out", out)
    refused = labeler("import", file, *flags)
    assert refused.code == 2
    assert f"{len(bad)} of {len(lines)} rows are bad" in refused.err
    assert not out.exists()
    done = labeler("import", file, *flags, "--max-reject-share", 0.9)
    assert done.code == 0, done.err
    reasons = read_rejects(out)["reason"].to_pylist()
    assert len(reasons) == len(bad)
    for reason in bad:
        assert sum(reason in found for found in reasons) == 1, reason
    assert reasons[0] in labeler("inspect", out, "--rejects").out
    stored = {row["id"]: labels for row, labels in rows_of(out)}
    assert set(stored) == {"turned", "good0", "good1", "good2"}
    np.testing.assert_array_equal(stored["turned"].topk_ids, stored["good0"].topk_ids)
    assert labeler("verify", out).code == 0


def test_refused_files_come_with_a_hint(
    teacher: Path, tmp_path: Path, labeler: CommandLine
) -> None:
    flags = ("--tokenizer", teacher, "--teacher", "unknown", "--out", tmp_path / "out")
    packed = distillkit_row() | {"compressed_logprobs": [[1]]}
    del packed["token_ids"], packed["top_values"]
    whole = [[np.log(0.5), np.log(0.3), np.log(0.2)]] * 7
    for rows, message in (
        ([{"prompt": "a", "completion": "b"}], "labeler label"),
        ([packed], "decompress_to_sparse"),
        ([{"x": 1}], "not a known format"),
        ([jsonl_row(topk_logprobs=whole)] * 4, "--allow renormalized"),
    ):
        refused = labeler("import", write(tmp_path / "rows.jsonl", rows), *flags)
        assert refused.code == 2
        assert message in refused.err
    assert labeler("import", tmp_path / "rows.jsonl", *flags, "--allow", "renormalized").code == 0
    assert (
        "a floor and no tail" in open_label_set(tmp_path / "out").manifest.provenance["tail_source"]
    )
    file = write(tmp_path / "rows.parquet", [distillkit_row()])
    refused = labeler("import", file, *flags, "--temperature", 2)
    assert refused.code == 2
    assert "temperature 2" in refused.err
    other = labeler("import", file, *flags)
    assert other.code == 2
    assert "made with different settings" in other.err


def test_a_dry_run_shows_the_first_row_and_writes_nothing(
    teacher: Path, tmp_path: Path, labeler: CommandLine
) -> None:
    tokenizer = Tokenizer.from_file(str(teacher / "tokenizer.json"))
    ids = tokenizer.encode(TEXT[0]).ids
    file = write(tmp_path / "rows.parquet", [distillkit_row(ids)])
    flags = ("--tokenizer", teacher, "--teacher", "unknown", "--dry-run")
    before = sorted(tmp_path.iterdir())
    facts = labeler("import", file, *flags, "--json").json
    assert sorted(tmp_path.iterdir()) == before
    assert facts["actual_token_in_top_k"]["1"] == 1.0
    line = facts["first_row"]["labels"][0]
    assert (line["position"], line["token"]) == (1, tokenizer.decode(ids[1:2]))
    assert line["before"] == tokenizer.decode(ids[:1])
    assert line["top"][0]["text"] == line["token"]
    shown = labeler("import", file, *flags)
    assert "100.0% with --shift 1" in shown.out
    assert repr(line["token"]) in shown.out


def test_a_killed_import_resumes(
    source: Path, teacher: Path, tmp_path: Path, labeler: CommandLine
) -> None:
    file = tmp_path / "rows.jsonl"
    assert labeler("export", source, file, "--format", "jsonl").code == 0
    flags = ("--tokenizer", teacher, "--teacher", teacher, "--codec", "compact")
    command = ("import", file, "--out", tmp_path / "out", *flags)
    assert labeler(*command).code == 0
    shard = tmp_path / "out" / "shards" / "part-000000.parquet"
    whole, written = shard.read_bytes(), shard.stat().st_mtime_ns
    assert "nothing to do" in labeler(*command).err
    assert shard.stat().st_mtime_ns == written
    entry_path(tmp_path / "out", 0).unlink()
    shard.write_bytes(b"half a shard")
    manifest = tmp_path / "out" / "manifest.json"
    running = json.loads(manifest.read_text()) | {"status": "running", "totals": None}
    from schemas.manifest import Manifest, write_manifest

    write_manifest(manifest.parent, Manifest(**running | {"index_pages": ()}))
    assert labeler(*command).code == 0
    assert shard.read_bytes() == whole
    file.write_text(file.read_text() + "\n" + json.dumps(jsonl_row()) + "\n")
    refused = labeler(*command)
    assert refused.code == 2


def test_a_lossy_export_is_refused(teacher: Path, tmp_path: Path, labeler: CommandLine) -> None:
    student = jsonl_row(
        id="row",
        student_input_ids=TOKENS[1:],
        student_spans=[{"start": 1, "stop": 7, "kind": "answer"}],
        spans=[{"start": 2, "stop": 8, "kind": "answer"}],
        topk_ids=jsonl_row()["topk_ids"][1:],
        topk_logprobs=jsonl_row()["topk_logprobs"][1:],
    )
    chat = jsonl_row(
        id="chat",
        spans=[{"start": 1, "stop": 2, "kind": "answer"}, {"start": 4, "stop": 8, "kind": "text"}],
        topk_ids=[*jsonl_row()["topk_ids"][:1], *jsonl_row()["topk_ids"][3:]],
        topk_logprobs=[*jsonl_row()["topk_logprobs"][:1], *jsonl_row()["topk_logprobs"][3:]],
    )
    flags = ("--tokenizer", teacher, "--teacher", "unknown")
    for name, row in (("student", student), ("chat", chat)):
        file = write(tmp_path / f"{name}.jsonl", [row])
        assert labeler("import", file, "--out", tmp_path / name, *flags).code == 0
    for name, format, suffix in (
        *(("student", format, ".parquet") for format in ("distillkit", "axolotl")),
        *(("student", "trl", ".jsonl"), ("chat", "trl", ".jsonl")),
    ):
        file = tmp_path / f"{name}-{format}{suffix}"
        command = ("export", tmp_path / name, file, "--format", format)
        refused = labeler(*command)
        assert refused.code == 2
        assert "--lossy" in refused.err
        assert not list(tmp_path.glob(f"*{file.name}*")), "no partial file stays"
        assert labeler(*command, "--lossy").code == 0
        assert "the file exists already" in labeler(*command, "--lossy").err
        assert labeler(*command, "--lossy", "--replace", "--limit", 1).code == 0
    assert (
        labeler("export", tmp_path / "student", tmp_path / "s.jsonl", "--format", "jsonl").code == 0
    )
    again = json.loads((tmp_path / "s.jsonl").read_text())
    assert again["student_input_ids"] == TOKENS[1:]
    wrong = labeler("export", tmp_path / "chat", tmp_path / "x.jsonl", "--format", "axolotl")
    assert wrong.code == 2
    assert ".parquet" in wrong.err


def test_a_view_and_a_limit(source: Path, tmp_path: Path, labeler: CommandLine) -> None:
    view = tmp_path / "docs.view.json"
    assert labeler("curate", source, "--out", view, "--where", "kind = 'text'").code == 0
    file = tmp_path / "docs.jsonl"
    facts = labeler("export", view, file, "--format", "jsonl", "--limit", 3, "--json").json
    ids = [json.loads(line)["id"] for line in file.read_text().splitlines()]
    assert len(ids) == facts["rows"] == 3
    assert all(name.startswith("doc") for name in ids)
    assert facts["label_set"]["view"] is not None
