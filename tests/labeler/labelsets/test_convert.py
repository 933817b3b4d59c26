"""`labeler convert`: different bytes, the same labels; and labeling directly into `compact/1`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.runs.label_run import label
from labeler.labelsets.derive import recode as recoding
from labeler.labelsets.derive.recode import recode
from schemas import SoftshardsError, decode, open_label_set, rounding, validate_label_set
from schemas.journal import entry_path
from tests.labeler.conftest import Run
from tests.tiny_model import TEXT

FLAGS = ("--engine", "transformers", "--k", 12, "--max-length", 64)
CUT = ("--unit-labels", 300, "--row-group-labels", 128)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text(
        "".join(json.dumps({"text": " ".join(TEXT[i % 5 :])}) + "\n" for i in range(20))
    )
    return path


@pytest.fixture(scope="module")
def source(teacher: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("source") / "plain"
    settings = LabelConfig(
        model=teacher,
        out=out,
        engine="transformers",
        k=12,
        max_length=64,
        unit_labels=300,
        row_group_labels=128,
    )
    label([str(corpus)], settings)
    return out


def shards(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((path / "shards").iterdir())}


@pytest.mark.slow
def test_compact_and_back(source: Path, tmp_path: Path, run_labeler: Run) -> None:
    done = run_labeler("convert", source, tmp_path / "compact", "--json")
    facts = json.loads(done.stdout)
    whole, compact = open_label_set(source), open_label_set(tmp_path / "compact")
    assert compact.manifest.codec == "compact/1"
    assert compact.manifest.identity == whole.manifest.identity
    assert (
        (compact.rows, compact.labels)
        == (whole.rows, whole.labels)
        == (
            facts["rows"],
            facts["labels"],
        )
    )
    assert not list(validate_label_set(compact))
    for before, after in zip(whole.row_groups, compact.row_groups, strict=True):
        a, b = (decode(s.read_row_group(g)).labels for s, g in ((whole, before), (compact, after)))
        np.testing.assert_array_equal(a.topk_ids[:, 0], b.topk_ids[:, 0])
        np.testing.assert_array_equal(a.tail_logprob, b.tail_logprob)
        step = 3 * rounding(a.topk_logprobs, "compact/1") + 1e-9
        difference = np.abs(np.sort(a.topk_logprobs, 1) - np.sort(b.topk_logprobs, 1))
        assert (difference <= np.sort(step, 1)[:, ::-1].max(1, keepdims=True)).all()
    run_labeler("convert", tmp_path / "compact", tmp_path / "p", "--codec", "plain")
    run_labeler("convert", tmp_path / "p", tmp_path / "again")
    assert shards(tmp_path / "again") == shards(tmp_path / "compact"), "no further loss"


@pytest.mark.slow
def test_labeling_into_compact_equals_converting(
    teacher: Path, corpus: Path, source: Path, tmp_path: Path, run_labeler: Run
) -> None:
    out = tmp_path / "direct"
    command = ("label", corpus, "--model", teacher, *FLAGS, *CUT, "--out")
    run_labeler(*command, out, "--codec", "compact")
    run_labeler("convert", source, tmp_path / "converted")
    assert shards(out) == shards(tmp_path / "converted")
    refused = run_labeler(*command, out, code=2)
    assert "has codec compact/1, --codec asks for plain/1" in refused.stderr
    into = run_labeler(*command, tmp_path / "converted", "--codec", "compact", code=2)
    assert "derived from others" in into.stderr


def test_a_killed_conversion_resumes(source: Path, tmp_path: Path) -> None:
    """As after `kill -9`: a journaled unit stays, a unit without an entry is written again."""
    labels, out = open_label_set(source), tmp_path / "compact"
    manifest = recode([labels], out, codec="compact/1", how="convert")
    assert manifest.planned_units > 2
    whole = shards(out)
    entry_path(out, 1).unlink()
    (out / "shards" / "part-000001.parquet").write_bytes(b"half a shard")
    (out / "shards" / ".tmp-12345678-part-000002.parquet").write_bytes(b"leftover")
    kept = (out / "shards" / "part-000000.parquet").stat().st_mtime_ns
    recode([labels], out, codec="compact/1", how="convert")
    assert shards(out) == whole
    assert (out / "shards" / "part-000000.parquet").stat().st_mtime_ns == kept
    with pytest.raises(SoftshardsError, match="holds another label set"):
        recode([labels], out, codec="plain/1", how="convert")


def test_a_changed_row_is_an_error_and_leaves_no_set(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison counts: with a bound that the codec cannot keep, nothing is journaled."""
    monkeypatch.setattr(recoding, "rounding", lambda x, codec: np.zeros_like(x))  # noqa: ARG005
    with pytest.raises(SoftshardsError, match="a logprob changed by"):
        recode([open_label_set(source)], tmp_path / "c", codec="compact/1", how="convert")
    assert not list((tmp_path / "c" / "journal").glob("*.json"))
