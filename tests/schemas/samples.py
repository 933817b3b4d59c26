"""Valid random labels and tables, for tests to use or to break."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from schemas.arrow import row_schema
from schemas.codec import PAD_ID, Labels, encode
from schemas.manifest import Identity


def random_labels(
    n: int,
    k: int,
    vocab: int,
    *,
    seed: int = 0,
    ragged: bool = False,
    tokens: list[int] | None = None,
    full: bool = False,
) -> Labels:
    """Return consistent labels of n positions from a random dense distribution."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, vocab)) * 3
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    ids = np.argsort(-logp, axis=1, kind="stable")[:, :k].astype(np.int32)
    top = np.take_along_axis(logp, ids, axis=1)
    actual = rng.integers(0, vocab, n) if tokens is None else np.asarray(tokens, np.int64)
    lengths = rng.integers(1, k + 1, n) if ragged else np.full(n, k)
    real = np.arange(k) < lengths[:, None]
    ids = np.where(real, ids, PAD_ID).astype(np.int32)
    top = np.where(real, top, -np.inf)
    rest = np.zeros_like(logp, dtype=bool)
    np.put_along_axis(rest, np.where(real, ids, ids[:, :1]), True, axis=1)
    with np.errstate(divide="ignore"):
        tail = np.log(np.where(rest, 0.0, np.exp(logp)).sum(axis=1))
    entropy = -(np.exp(logp) * logp).sum(axis=1) if full else None
    return Labels(
        topk_ids=ids,
        topk_logprobs=top.astype(np.float32),
        tail_logprob=tail.astype(np.float32),
        token_logprob=logp[np.arange(n), actual].astype(np.float32),
        entropy=None if entropy is None else entropy.astype(np.float32),
        log_normalizer=None if entropy is None else rng.normal(size=n).astype(np.float32),
    )


def identity(*, vocab_size: int, k: int) -> Identity:
    """Return an identity without a teacher, for single shards."""
    return Identity(
        weights="0" * 64,
        model_config_digest="0" * 64,
        tokenizer="0" * 64,
        vocab_size=vocab_size,
        chat_template=None,
        dtype="float32",
        head_dtype="float32",
        mode="score",
        k=k,
        max_length=64,
        overlap=0,
    )


def shard_table(lengths: list[int], k: int = 8, vocab: int = 100, **kwargs: Any) -> pa.Table:
    """Return rows of the given lengths in tokens, labeled at every position but the first."""
    rng = np.random.default_rng(7)
    ids = [rng.integers(0, vocab, n).tolist() for n in lengths]
    labels = [
        random_labels(n - 1, k, vocab, seed=i, tokens=ids[i][1:], **kwargs)
        for i, n in enumerate(lengths)
    ]
    return table(labels, vocab_size=vocab, input_ids=ids)


def table(
    rows: list[Labels], *, vocab_size: int, input_ids: list[list[int]] | None = None
) -> pa.Table:
    """Return rows with these labels at every position but the first; tokens are 0 by default."""
    lengths = [len(labels) + 1 for labels in rows]
    values: dict[str, Any] = {
        "id": [f"row/{i}" for i in range(len(lengths))],
        "chunk": [0] * len(lengths),
        "sample": [0] * len(lengths),
        "n_tokens": lengths,
        "n_labels": [n - 1 for n in lengths],
        "input_ids": input_ids or [[0] * n for n in lengths],
        "spans": [[{"start": 1, "stop": n, "kind": "text"}] if n > 1 else [] for n in lengths],
    }
    columns = encode(rows, vocab_size)
    arrays = [
        columns[f.name].cast(f.type)
        if f.name in columns
        else pa.array(values.get(f.name, [None] * len(lengths)), f.type)
        for f in row_schema(vocab_size)
    ]
    return pa.Table.from_arrays(arrays, schema=row_schema(vocab_size))
