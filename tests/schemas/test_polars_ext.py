"""The namespace `labels` in Polars, against NumPy on decoded labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from schemas import SoftshardsError, bucketed_entropy, decode, encode, scan
from schemas.arrow import SPAN_KINDS, row_schema
from schemas.codec import PAD_ID, Labels
from schemas.divergence import diverge
from tests.schemas.samples import random_labels
from tests.schemas.sets import CODECS, GOLDEN, varied_set

VOCAB = 60


def labeled_rows(seed: int, rows: int, k: int, *, ragged: bool, full: bool) -> pa.Table:
    """Return rows of random lengths and spans, some without labels; `full` stores entropies."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 20, rows)
    tokens = [rng.integers(0, VOCAB, n).tolist() for n in lengths]
    spans = [_random_spans(rng, n) for n in lengths]
    places = [[t for s in row for t in range(s["start"], s["stop"])] for row in spans]
    labels = [
        random_labels(
            len(at), k, VOCAB, seed=seed + i, ragged=ragged, full=full and i % 3 != 1,
            tokens=[tokens[i][t] for t in at],
        )
        for i, at in enumerate(places)
    ]  # fmt: skip
    schema = row_schema(VOCAB)
    values: dict[str, Any] = encode(labels, VOCAB) | {
        "id": [f"row/{i}" for i in range(rows)],
        "chunk": rng.integers(0, 3, rows).tolist(),
        "sample": [0] * rows,
        "source": [None, *["corpus"] * (rows - 1)],
        "n_tokens": lengths.tolist(),
        "n_labels": [len(at) for at in places],
        "input_ids": tokens,
        "spans": spans,
    }
    columns = [
        values[f.name].cast(f.type)
        if isinstance(values.get(f.name), pa.Array)
        else pa.array(values.get(f.name, [None] * rows), f.type)
        for f in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _random_spans(rng: np.random.Generator, n: int) -> list[dict[str, Any]]:
    labeled = np.concatenate([[False], rng.random(n - 1) < 0.6, [False]])
    edges = np.flatnonzero(labeled[1:] != labeled[:-1]) + 1
    return [
        {"start": int(a), "stop": int(b), "kind": str(rng.choice(SPAN_KINDS))}
        for a, b in edges.reshape(-1, 2)
    ]


TABLES = st.builds(
    labeled_rows,
    st.integers(0, 10_000),
    st.integers(1, 6),
    st.integers(1, 9),
    ragged=st.booleans(),
    full=st.booleans(),
)


def reference(table: pa.Table) -> tuple[list[dict[str, Any]], Labels]:
    """Return the positions, exploded in plain Python, and the labels in the same order."""
    positions = [
        {
            "id": row["id"],
            "chunk": row["chunk"],
            "sample": row["sample"],
            "position": t,
            "kind": span["kind"],
            "token_id": row["input_ids"][t],
        }
        for row in table.to_pylist()
        for span in row["spans"]
        for t in range(span["start"], span["stop"])
    ]
    return positions, decode(table).labels


def unpadded(values: Any, ids: Any) -> list[Any]:
    return [row[real].tolist() for row, real in zip(values, ids != PAD_ID, strict=True)]


@given(table=TABLES)
@settings(max_examples=60)
def test_exploded_positions_match_decode(table: pa.Table) -> None:
    rows, labels = reference(table)
    frame = pl.DataFrame(table).labels.explode(keep=["source"])
    assert frame.select("id", "chunk", "sample", "position", "kind", "token_id").to_dicts() == rows
    assert frame["topk_ids"].to_list() == unpadded(labels.topk_ids, labels.topk_ids)
    assert frame["topk_logprobs"].to_list() == unpadded(labels.topk_logprobs, labels.topk_ids)
    for name in ("tail_logprob", "token_logprob"):
        assert frame[name].to_list() == getattr(labels, name).tolist()
    per_row = table["entropy"].to_pylist()
    expected = [
        x
        for entropy, n in zip(per_row, table["n_labels"].to_pylist(), strict=True)
        for x in ([None] * n if entropy is None else entropy)
    ]
    assert frame["entropy"].to_list() == expected
    assert frame["source"].to_list() == [None if r["id"] == "row/0" else "corpus" for r in rows]
    few = pl.DataFrame(table).lazy().labels.explode("token_logprob").collect()
    assert few.equals(frame.select("id", "chunk", "sample", "token_logprob"))


@given(table=TABLES)
@settings(max_examples=60)
def test_expressions_agree_with_numpy_on_rows_and_on_positions(table: pa.Table) -> None:
    positions, labels = reference(table)
    with np.errstate(invalid="ignore"):
        probs = np.exp(labels.topk_logprobs)
    tokens = np.array([p["token_id"] for p in positions], np.int32)
    first = labels.topk_ids[:, :1].reshape(-1)

    def asked(token: pl.Expr) -> dict[str, pl.Expr]:
        logs, ids = pl.col("topk_logprobs").labels, pl.col("topk_ids").labels
        return {
            "probs": logs.probs(),
            "coverage": logs.coverage(),
            "entropy": logs.entropy("tail_logprob"),
            "argmax": ids.argmax(),
            "agrees": ids.agrees(token),
        }

    rows = pl.DataFrame(table).select(**asked(pl.col("input_ids").labels.at("spans")))
    lengths = rows.select(pl.all().list.len())
    assert all(column.to_list() == table["n_labels"].to_pylist() for column in lengths)
    exploded = pl.DataFrame(table).labels.explode().select(**asked(pl.col("token_id")))
    for frame in (rows.explode(pl.all(), empty_as_null=False), exploded):
        assert frame.height == len(labels)
        np.testing.assert_allclose(frame["coverage"], probs.sum(axis=1), rtol=1e-5)
        np.testing.assert_allclose(frame["entropy"], bucketed_entropy(labels), atol=1e-5)
        assert frame["argmax"].to_list() == first.tolist()
        assert frame["agrees"].to_list() == (first == tokens).tolist()
        flat = np.concatenate([[], *unpadded(probs, labels.topk_ids)])
        np.testing.assert_allclose(
            frame["probs"].explode(empty_as_null=False).to_numpy(), flat, rtol=1e-6
        )


def test_the_whole_vocabulary_and_no_mass_at_all() -> None:
    """0 log 0 is 0: a tail of -inf, and ids of -inf, add nothing."""
    frame = pl.DataFrame(
        {"logs": [[0.0, -np.inf], [np.log(0.5), np.log(0.5)]], "tail": [-np.inf, -np.inf]},
        schema={"logs": pl.List(pl.Float16), "tail": pl.Float16},
    )
    found = frame.select(pl.col("logs").labels.entropy("tail")).to_series()
    np.testing.assert_allclose(found, [0, np.log(2)], atol=1e-3)


def test_null_rows_stay_null() -> None:
    """Null rows, as after a left join with a set that lacks some."""
    nested = pl.DataFrame(
        {"logs": [None, [[-0.5, -2.0]], []], "tail": [None, [-3.0], []]},
        schema={"logs": pl.List(pl.List(pl.Float16)), "tail": pl.List(pl.Float16)},
    )
    found = nested.select(
        coverage=pl.col("logs").labels.coverage(),
        entropy=pl.col("logs").labels.entropy("tail"),
        text=pl.lit(None, pl.List(pl.Int32)).labels.decode(str),
    )
    for name in ("coverage", "entropy"):
        assert found[name].is_null().to_list() == [True, False, False]
        assert found[name].list.len().to_list() == [None, 1, 0]
    assert found["text"].null_count() == 3


@given(seed=st.integers(0, 1000), k=st.integers(1, 9))
@settings(max_examples=25)
def test_two_teachers_joined(seed: int, k: int) -> None:
    """The KL is that of `diverge`; rows of one set only, or with different tokens, are left out."""
    table = labeled_rows(seed, 5, 6, ragged=True, full=False)
    n = len(decode(table).labels)
    second = encode([random_labels(n, k, VOCAB, seed=seed + 99)], VOCAB)
    a = pl.DataFrame(table).labels.explode()
    b = a.with_columns(
        pl.Series(name, pl.from_arrow(second[name]).explode(empty_as_null=False))
        for name in ("topk_ids", "topk_logprobs", "tail_logprob", "token_logprob")
    )
    flat = pa.table(second)
    expected = diverge(decode(table).labels, decode(flat).labels)
    other_text = (pl.col("id") == "row/1").cast(pl.Int32)
    b = b.filter(pl.col("id") != "row/2").with_columns(pl.col("token_id") + other_text)
    kept = (~a["id"].is_in(["row/1", "row/2"])).to_numpy()
    both = a.labels.join(b.sample(fraction=1, shuffle=True, seed=seed), suffix="_b")
    assert both.select("id", "chunk", "position").equals(
        a.filter(kept).select("id", "chunk", "position")
    )
    np.testing.assert_allclose(both["kl"], expected.a_to_b[kept], atol=1e-12)
    np.testing.assert_allclose(both["kl_back"], expected.b_to_a[kept], atol=1e-12)
    np.testing.assert_allclose(both["common_mass"], expected.common_mass[kept], atol=1e-12)
    assert both["same_first"].to_list() == expected.same_first[kept].tolist()
    assert (
        both["topk_ids_b"].to_list()
        == b.filter(kept[(a["id"] != "row/2").to_numpy()])["topk_ids"].to_list()
    )


def test_a_set_joined_with_itself_in_the_other_codec(tmp_path: Path) -> None:
    plain, compact = (scan(varied_set(tmp_path / str(i), c)) for i, c in enumerate(CODECS))
    both = plain.labels.join(compact).collect()
    assert both.height == plain.select(pl.col("n_labels").sum()).collect().item() > 0
    assert both["same_first"].all()
    assert 0 < both["kl"].mean() < 1e-3
    nothing = plain.filter(pl.col("id") == "row/3").labels.join(
        compact.filter(pl.col("id") != "row/3")
    )
    assert nothing.collect().height == 0
    exact = plain.labels.join(plain).select(pl.col("kl", "kl_back").abs().max()).collect()
    assert exact.row(0) == (0.0, 0.0)


def test_ids_to_text() -> None:
    frame = scan(GOLDEN).labels.explode().collect()
    file = GOLDEN / "tokenizer" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    words = frame.lazy().labels.decode(file).collect()
    assert words["token"].to_list() == [
        tokenizer.decode([i], skip_special_tokens=False) for i in frame["token_id"]
    ]
    assert words["topk_tokens"].to_list() == [
        [tokenizer.decode([i], skip_special_tokens=False) for i in ids] for ids in frame["topk_ids"]
    ]
    calls: list[list[int]] = []

    def own(ids: list[int]) -> str:
        calls.append(ids)
        return f"<{ids[0]}>"

    rows = scan(GOLDEN).collect()
    text = rows.select(pl.col("topk_ids").labels.decode(own)).to_series()
    assert text.explode().explode().to_list() == [
        f"<{i}>" for i in rows["topk_ids"].explode().explode()
    ]
    flat = rows["topk_ids"].explode().explode()
    assert len(calls) <= 3 * flat.n_unique() < len(flat), "each id once, not each token"
    assert words["token"].to_list() == frame.labels.decode(tokenizer_object())["token"].to_list()


def tokenizer_object() -> Any:
    """Return an object with `decode`, like a transformers tokenizer."""

    class Wrapped:
        inner = Tokenizer.from_file(str(GOLDEN / "tokenizer" / "tokenizer.json"))

        def decode(self, ids: list[int]) -> str:
            return self.inner.decode(ids, skip_special_tokens=False)

    return Wrapped()


def test_misuse_is_refused_with_a_hint(tmp_path: Path) -> None:
    frame = scan(GOLDEN)
    with pytest.raises(SoftshardsError, match=r"no column 'logits' to explode\n.*topk_ids"):
        frame.labels.explode("logits")
    with pytest.raises(SoftshardsError, match=r"tokenizer\.json is missing"):
        frame.labels.decode(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(SoftshardsError, match=r"not a tokenizer\.json"):
        pl.col("input_ids").labels.decode(tmp_path / "tokenizer.json")
    with pytest.raises(SoftshardsError, match="int is not a tokenizer"):
        pl.col("input_ids").labels.decode(3)
