"""Exact labels of the quickstart's teacher on its articles, for benchmarks of what stores them.

Computed once with the reference engine, in float32, and stored beside the teacher.
"""

from __future__ import annotations

import pydoc_data.topics
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from labeler.console import progress
from labeler.labeling.engines.engine import Labeled, Request
from labeler.labeling.engines.transformers_engine import TransformersEngine
from labeler.labeling.rendering.spans import Span
from labeler.labeling.teacher.teacher import open_teacher
from schemas import Identity, Labels, encode
from schemas.arrow import row_schema
from schemas.atomic import atomic_path

TEACHER = Path(__file__).parents[1] / ".cache" / "smollm2-135m-instruct"
LENGTH = 1024
WIDEST = 128


def exact_labels(positions: int) -> tuple[Labels, int]:
    """Return float32 labels at `positions` positions with the top 128 ids, and the vocabulary size.

    Raises:
        SystemExit: the teacher is not there.
    """
    if not TEACHER.is_dir():
        raise SystemExit(f"error: no teacher: run scripts/get_teacher.py {TEACHER}")
    kept = TEACHER.parent / f"benchmark-labels-{positions}.npz"
    teacher = open_teacher(TEACHER, max_length=LENGTH)
    if not kept.is_file():
        with atomic_path(kept) as tmp, tmp.open("wb") as stream:
            np.savez(stream, **_compute(positions))
    with np.load(kept) as arrays:
        return Labels(**{name: arrays[name] for name in arrays.files}), teacher.vocab_size


def _compute(positions: int) -> dict[str, NDArray[np.float32] | NDArray[np.int32]]:
    teacher = open_teacher(TEACHER, max_length=LENGTH)
    engine = TransformersEngine(
        teacher, dtype="float32", head_dtype="float32", k=WIDEST, sampling=None
    )
    ids = text_ids(positions * LENGTH // (LENGTH - 1) + 1)
    parts: list[Labels] = []
    with progress("sequences") as bar:
        starts = range(0, len(ids), LENGTH)
        for index, start in enumerate(bar.track(starts, description="labeling, once")):
            some = ids[start : start + LENGTH]
            span = Span(start=1, stop=len(some), kind="text")
            request = Request(index=index, sample=0, input_ids=some, spans=(span,), seed=0)
            (outcome,) = engine.run([request])
            assert isinstance(outcome, Labeled), outcome
            parts.append(outcome.labels)
    engine.close()
    names = ("topk_ids", "topk_logprobs", "tail_logprob", "token_logprob")
    return {n: np.concatenate([getattr(p, n) for p in parts])[:positions] for n in names}


def text_ids(count: int) -> list[int]:
    """Return the first tokens of the quickstart's articles."""
    text = "\n\n".join(pydoc_data.topics.topics.values())
    teacher = open_teacher(TEACHER, max_length=LENGTH)
    return teacher.tokenizer.encode(text[: count * 12])[:count]


def first_k(labels: Labels, k: int) -> Labels:
    """Return the labels with fewer ids; the mass that is cut off goes to the tail."""
    cut = np.exp(labels.topk_logprobs[:, k:].astype(np.float64)).sum(axis=1)
    tail = np.log(np.exp(labels.tail_logprob.astype(np.float64)) + cut)
    return Labels(
        topk_ids=labels.topk_ids[:, :k],
        topk_logprobs=labels.topk_logprobs[:, :k],
        tail_logprob=tail.astype(np.float32),
        token_logprob=labels.token_logprob,
    )


def spread_over(labels: Labels, vocab_size: int) -> Labels:
    """Return the labels with ids scattered over a larger vocabulary by a fixed permutation."""
    places = np.random.default_rng(0).permutation(vocab_size).astype(np.int32)
    arrays = vars(labels) | {"topk_ids": places[labels.topk_ids]}
    return Labels(**arrays)


def identity(vocab_size: int, k: int, *, tokenizer: str = "") -> Identity:
    """Return the identity of a label set whose teacher does not matter."""
    return Identity(
        weights="",
        model_config_digest="",
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        chat_template=None,
        dtype="float32",
        head_dtype="float32",
        mode="score",
        k=k,
        max_length=LENGTH,
        overlap=0,
    )


def as_rows(labels: Labels, vocab_size: int, row_labels: int = LENGTH - 1) -> pa.Table:
    """Return rows of a shard with these labels, as long as the quickstart's; the rest is empty."""
    cuts = range(0, len(labels), row_labels)
    rows = [labels[slice(start, start + row_labels)] for start in cuts]
    counts = [len(row) for row in rows]
    values = {
        "id": [f"row/{i}" for i in range(len(rows))],
        "chunk": [0] * len(rows),
        "sample": [0] * len(rows),
        "n_tokens": [count + 1 for count in counts],
        "n_labels": counts,
        "input_ids": [[0] * (count + 1) for count in counts],
        "spans": [[{"start": 1, "stop": count + 1, "kind": "text"}] for count in counts],
    }
    schema, columns = row_schema(vocab_size), encode(rows, vocab_size)
    arrays = [
        columns[f.name].cast(f.type)
        if f.name in columns
        else pa.array(values.get(f.name, [None] * len(rows)), f.type)
        for f in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
