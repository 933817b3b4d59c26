"""Runs with hidden states: what is written, resumed, appended to and refused."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.runs import prepare_states as preparing
from labeler.labeling.runs.engine_session import EngineSession
from labeler.labeling.runs.label_dry_run import dry_run
from labeler.labeling.runs.label_run import label
from labeler.labeling.runs.stopping import Interrupted, Stop
from schemas import (
    Labels,
    LabelSet,
    SoftshardsError,
    decode,
    open_label_set,
    validate_label_set,
)
from schemas.hidden_part import state_columns
from schemas.plan import open_plan
from schemas.state_codec import DEFAULT_KL
from tests.fork_server import fork_server
from tests.labeler.conftest import Settings
from tests.tiny_model import TEXT, make_model


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """Write documents of about 1,300 tokens together: twice what a basis of 64 axes needs."""
    rng, words = np.random.default_rng(0), " ".join(TEXT).split()
    rows = [{"id": str(i), "text": " ".join(rng.choice(words, 24))} for i in range(24)]
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def files(config: LabelConfig) -> dict[str, bytes]:
    found = (p for name in ("shards", "hidden", "head") for p in (config.folder / name).iterdir())
    return {str(path.relative_to(config.folder)): path.read_bytes() for path in found}


def stored(labels: LabelSet) -> Labels:
    """Return all labels of a set with their states, as they are stored."""
    assert labels.states is not None
    columns = ["topk_ids", "topk_logprobs", "tail_logprob", "token_logprob"]
    columns += state_columns(labels.states.layers)
    parts = [decode(labels.read_row_group(g, columns=columns)).labels for g in labels.row_groups]
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in (*columns[:4], "states")
    }
    return Labels(**arrays)


def logprobs_of_head(labels: LabelSet) -> tuple[Any, Any]:
    """Return top-k logprobs [n, k] as they are stored, and those of the head on stored states."""
    rows, basis = stored(labels), labels.basis("final")
    assert rows.states is not None
    states = rows.states[:, 0]
    states = states.astype(np.float32) if basis is None else basis.states(states)
    weight = labels.head.rows(0, len(labels.head.weight)).astype(np.float64)
    logits = states @ weight.T
    logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return rows.topk_logprobs, np.take_along_axis(logprobs, rows.topk_ids, 1)


def kl_of_head(labels: LabelSet) -> float:
    """Return the mean KL between the two; over all ids, where k is as many."""
    here, found = logprobs_of_head(labels)
    return float((np.exp(here) * (here - found)).sum(1).mean())


def test_a_set_holds_the_teachers_whole_distribution(documents: Path, settings: Settings) -> None:
    """With k = V, the KL of stored labels and stored states is over all ids."""
    config = settings(states="1,final", k=320)
    label([str(documents)], config)
    labels = open_label_set(config.out)
    record = labels.states
    assert record is not None
    assert (record.layers, record.codec, record.dimensions) == (
        ("final", "layer_1"),
        "states/2",
        64,
    )
    assert record.kl_asked == DEFAULT_KL == LabelConfig(model=config.model, out="out").state_kl
    assert record.kl_measured == pytest.approx(DEFAULT_KL, rel=0.3)
    assert (record.positions_measured or 0) >= 2 * 64
    assert kl_of_head(labels) == pytest.approx(DEFAULT_KL, rel=0.3)


def test_float16_where_it_is_asked_for(documents: Path, settings: Settings) -> None:
    config = settings(states="final", k=320, state_kl=0)
    estimated = dry_run([str(documents)], config).state_bytes
    summary = label([str(documents)], config)
    head = (config.folder / "head" / "head.safetensors").stat().st_size
    assert estimated == pytest.approx((summary.hidden_bytes or 0) + head, rel=0.2)
    labels = open_label_set(config.out)
    assert labels.manifest.identity.states == "final states/1"
    assert labels.states is not None
    assert (labels.states.kl_asked, labels.states.kl_measured) == (None, None)
    assert not list((config.folder / "head").glob("basis_*"))
    assert kl_of_head(labels) < 5e-5


def test_float16_where_a_set_is_small(
    documents: Path, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(states="final", limit=8)
    label([str(documents)], config)
    notice = " ".join(capsys.readouterr().err.split())
    assert "labels are too few for the codec of hidden states, which needs 512" in notice
    assert open_label_set(config.out).manifest.identity.states == "final states/1"
    assert label([str(documents)], config).units_labeled == 0


@pytest.mark.parametrize(("most_planned", "seen"), [(64, 27), (1, 8)])
def test_float16_where_rows_come_out_too_short_for_a_basis(
    documents: Path,
    settings: Settings,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    most_planned: int,
    seen: int,
) -> None:
    """The plan has enough labels (answers count with --max-tokens), and the rows have not."""
    monkeypatch.setattr(preparing, "MOST_PLANNED", most_planned)
    config = settings(states="final", keep_positions="entropy>99")
    label([str(documents)], config)
    assert f"labeled first have {seen} labels, too few for the codec of hidden states" in (
        capsys.readouterr().err.replace("\n", " ")
    )
    labels = open_label_set(config.out)
    assert labels.labels == labels.rows == 27
    assert labels.manifest.identity.states == "final states/1"
    assert list(validate_label_set(labels)) == []
    assert label([str(documents)], config).units_labeled == 0
    stop, plan = Stop(), open_plan(config.folder, labels.manifest.plan)
    stop.signal = signal.SIGINT
    with pytest.raises(Interrupted):
        preparing._sample(cast(EngineSession, None), config, plan, 8, stop)


def test_missing_and_truncated_states_are_labeled_again_byte_for_byte(
    documents: Path, settings: Settings
) -> None:
    config = settings(states="final,0")
    label([str(documents)], config)
    whole = files(config)
    first, second, *_ = sorted((config.folder / "hidden").iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:-40])
    assert label([str(documents)], config).units_labeled == 2
    assert files(config) == whole


@pytest.mark.parametrize(
    "name", ["head/head.safetensors", "head/basis_final.safetensors", "hidden/part-000001.parquet"]
)
def test_a_full_disk_leaves_finished_units(
    documents: Path, settings: Settings, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, whole = settings(states="final"), settings(states="final", out=documents.parent / "w")
    fsync, folder, file = os.fsync, *name.split("/")

    def full(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.parent.name == folder and path.name.endswith(file):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(SoftshardsError, match="the disk is full"):
            label([str(documents)], config)
    finished = len(list((config.folder / "journal").glob("unit-*.json")))
    assert finished == (folder == "hidden")
    label([str(documents)], whole)
    assert label([str(documents)], config).units_reused == finished
    assert files(config) == files(whole)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["killed-in-basis", "killed-in-states", "killed-in-entry"])
def test_kill_9_leaves_a_set_that_is_finished_the_same(
    documents: Path, settings: Settings, fault: str
) -> None:
    config, whole = settings(states="final"), settings(states="final", out=documents.parent / "w")
    flags = ["--model", config.model, "--out", config.out, "--engine", "transformers"]
    flags += ["--k", 8, "--max-length", 64, "--unit-labels", 300, "--row-group-labels", 128]
    server = fork_server("tests.labeler.preload")
    command = ("label", documents, *flags, "--states", "final")
    killed = server.run("tests.labeler.faults", fault, *command)
    assert killed.returncode == -signal.SIGKILL
    for each in (whole, config):
        label([str(documents)], each)
    assert files(config) == files(whole)
    assert list(validate_label_set(open_label_set(config.out))) == []


def test_ranks_share_the_bases_of_the_first(documents: Path, settings: Settings) -> None:
    alone, one, two = (
        settings(states="final", **changes)
        for changes in (
            {"out": documents.parent / "alone"},
            {"rank": 1, "world_size": 2},
            {"rank": 0, "world_size": 2},
        )
    )
    label([str(documents)], one)
    bases = {n: b for n, b in files(one).items() if n.startswith("head/")}
    assert label([str(documents)], two).status == "complete"
    label([str(documents)], alone)
    assert files(two) == files(alone)
    assert files(two).items() >= bases.items()


def test_appended_rows_are_stored_in_the_sets_bases(documents: Path, settings: Settings) -> None:
    config = settings(states="final", k=320)
    label([str(documents)], config)
    before = files(config)
    more = documents.with_name("more.jsonl")
    more.write_text(
        "".join(json.dumps({"id": f"m{i}", "text": t}) + "\n" for i, t in enumerate(TEXT))
    )
    label([str(more)], dataclasses.replace(config, append=True))
    assert files(config).items() > before.items()
    labels = open_label_set(config.out)
    assert labels.rows > 24
    assert kl_of_head(labels) == pytest.approx(DEFAULT_KL, rel=0.3)


def test_other_states_are_refused(documents: Path, settings: Settings) -> None:
    config = settings(states="final")
    label([str(documents)], config)
    for changes, refused in (
        ({"states": "final,1"}, "states: here 'final states/2', asked 'final,layer_1 states/2'"),
        ({"states": None}, "states: here 'final states/2', asked None"),
        ({"state_kl": 0.01}, "state_kl: here None, asked 0.01"),
        ({"state_kl": 0}, "state_kl: here None, asked 0"),
    ):
        with pytest.raises(SoftshardsError, match=re.escape(refused)):
            label([str(documents)], dataclasses.replace(config, **changes))


def test_generations_have_states(documents: Path, settings: Settings) -> None:
    prompts = documents.with_name("prompts.jsonl")
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXT))
    config = settings(states="final", k=320, mode="generate", max_tokens=12)
    label([str(prompts)], config)
    labels = open_label_set(config.out)
    assert labels.manifest.identity.states == "final states/1"  # at most 60 labels
    assert kl_of_head(labels) < 5e-5


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"states": "last"}, "--states is 'last'; it must be `final`"),
        ({"states": ""}, "--states is ''"),
        ({"states": "final,-1"}, "--states is 'final,-1'"),
        ({"states": "final", "state_kl": -1.0}, "--state-kl is -1; it must be 0 or at least 1e-05"),
        ({"states": "final", "state_kl": float("nan")}, "--state-kl is nan"),
        ({"states": "final", "capture": "public"}, "--states needs"),
        ({"states": "2", "engine": "served", "server_url": "http://x/v1"}, "--states needs"),
    ],
)
def test_settings_that_cannot_be_followed(
    settings: Settings, changes: dict[str, Any], refused: str
) -> None:
    with pytest.raises(SoftshardsError, match=re.escape(refused)):
        settings(**changes)


def test_a_layer_that_the_teacher_lacks(documents: Path, settings: Settings) -> None:
    with pytest.raises(SoftshardsError, match="names layer 2; the teacher's are 0 to 1"):
        label([str(documents)], settings(states="final,2"))


def test_states_too_large_for_float16(
    documents: Path, settings: Settings, teacher: Path, tmp_path: Path
) -> None:
    """The codec with axes holds them, float16 does not."""
    large = tmp_path / "large"
    shutil.copytree(teacher, large)
    make_model(large, vocab_size=320, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(large)
    model.get_input_embeddings().weight.data.mul_(1e6)
    model.save_pretrained(large)
    config = settings(model=large, states="0")
    assert label([str(documents)], config).rejects == 0
    config = dataclasses.replace(config, out=tmp_path / "float16", state_kl=0)
    with pytest.raises(SoftshardsError, match="too large for float16"):
        label([str(documents)], config)
