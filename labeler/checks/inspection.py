"""`labeler inspect`: what is in a label set, asked with Polars."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
from rich.table import Table
from rich.text import Text

from labeler.console import human_bytes, out
from schemas import LabelSet, LabelSetError, decode, open_label_set, scan
from schemas.journal import read_rejects

QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
ROW_COLUMNS = ("id", "chunk", "sample", "n_labels", "input_ids", "spans")
TOP = 5


def summarise(path: Path, *, partial: bool) -> dict[str, Any]:
    """Facts of a label set as JSON values. Reads every byte of it, verified.

    Raises:
        LabelSetError: the set cannot be opened, or a shard is altered.
    """
    labels = open_label_set(path, allow_partial=partial)
    rows = scan(path, allow_partial=partial)
    weight = pl.col("n_labels") / pl.col("n_labels").sum()
    scalars = rows.select(
        perplexity=(pl.col("mean_nll") * weight).sum().exp(),
        mean_entropy=(pl.col("mean_entropy") * weight).sum(),
        mean_coverage=(pl.col("coverage") * weight).sum(),
    )
    logs = pl.col("topk_logprobs").explode().cast(pl.List(pl.Float32))
    tail = pl.col("tail_logprob").explode().cast(pl.Float32)
    p_log_p = pl.element().exp() * pl.element()
    by_position = rows.select(top_k=logs, tail=tail).select(
        coverage=1 - pl.col("tail").exp(),
        entropy=-pl.col("top_k").list.eval(p_log_p).list.sum()
        - pl.when(pl.col("tail").is_infinite())
        .then(0.0)
        .otherwise(pl.col("tail").exp() * pl.col("tail")),
    )
    quantiles = by_position.select(
        pl.col(name).quantile(q).alias(f"{name} {q}")
        for name in ("coverage", "entropy")
        for q in QUANTILES
    )
    lengths = rows.select(
        shortest=pl.col("n_tokens").min(),
        median=pl.col("n_tokens").median(),
        longest=pl.col("n_tokens").max(),
    )
    finish = rows.group_by("finish_reason").len().sort("finish_reason")
    frames = pl.collect_all([scalars, quantiles, lengths, finish])
    quantile_row = frames[1].row(0, named=True)
    size = sum(footer.stop for footer in {g.shard: g.footer for g in labels.row_groups}.values())
    identity = labels.manifest.identity
    return {
        "path": str(path),
        "status": labels.manifest.status,
        "mode": identity.mode,
        "k": identity.k,
        "codec": labels.manifest.codec,
        "teacher": labels.manifest.provenance.get("teacher"),
        "teacher_weights": identity.weights,
        "dtype": identity.dtype,
        "head_dtype": identity.head_dtype,
        "vocab_size": identity.vocab_size,
        "shards": len(labels.shards),
        "row_groups": len(labels.row_groups),
        "rows": labels.rows,
        "tokens": labels.tokens,
        "labels": labels.labels,
        "rejects": read_rejects(path).num_rows,
        "bytes": size,
        "bytes_per_label": round(size / max(1, labels.labels), 1),
        **{name: round(value, 4) for name, value in frames[0].row(0, named=True).items()},
        "coverage_quantiles": {q: round(quantile_row[f"coverage {q}"], 4) for q in QUANTILES},
        "entropy_quantiles": {q: round(quantile_row[f"entropy {q}"], 4) for q in QUANTILES},
        "row_tokens": frames[2].row(0, named=True),
        "finish_reasons": {str(reason): count for reason, count in frames[3].rows()},
    }


def print_summary(path: Path, *, partial: bool, as_json: bool) -> None:
    """Print `summarise`."""
    facts = summarise(path, partial=partial)
    if as_json:
        print(json.dumps(facts))
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    quantiles = " / ".join(f"{q:g}" for q in QUANTILES)
    shown = {
        "label set": f"{path} ({facts['status']}, {facts['codec']}, mode {facts['mode']})",
        "teacher": f"{facts['teacher']}, {facts['dtype']}, head in {facts['head_dtype']}",
        "": f"weights {facts['teacher_weights'][:16]}..., vocabulary {facts['vocab_size']}",
        "rows": f"{facts['rows']} in {facts['shards']} shards, {facts['row_groups']} row groups",
        "rejects": f"{facts['rejects']}",
        "tokens": f"{facts['tokens']}, labeled {facts['labels']}",
        "row length": "{shortest} shortest, {median:g} median, {longest} longest".format(
            **facts["row_tokens"]
        ),
        "size": f"{human_bytes(facts['bytes'])}, {facts['bytes_per_label']} B a label "
        f"at k = {facts['k']}",
        "perplexity": f"{facts['perplexity']:.2f} of the teacher on the labeled tokens",
        "coverage": f"{facts['mean_coverage']:.4f} of the mass is in the top {facts['k']}; "
        f"quantiles {quantiles}: " + _joined(facts["coverage_quantiles"]),
        "entropy": f"{facts['mean_entropy']:.3f} nats (top-k and tail); "
        f"quantiles {quantiles}: " + _joined(facts["entropy_quantiles"]),
    }
    if facts["mode"] == "generate":
        shown["finished by"] = ", ".join(f"{n} {r}" for r, n in facts["finish_reasons"].items())
    for name, value in shown.items():
        table.add_row(name, value)
    out.print(table)


def _joined(quantiles: dict[float, float]) -> str:
    return " / ".join(f"{value:.3f}" for value in quantiles.values())


def print_rejects(path: Path, *, as_json: bool) -> None:
    """Print what could not be labeled, and why."""
    open_label_set(path, allow_partial=True)
    rejects = read_rejects(path).to_pylist()
    for reject in rejects:
        out.print(json.dumps(reject) if as_json else f"{reject['id']}: {reject['reason']}")
    if not as_json:
        out.print(f"{len(rejects)} rejects")


def print_row(path: Path, name: str, positions: int, *, partial: bool, as_json: bool) -> None:
    """Print a row's labeled tokens, each beside the teacher's top 5 and the tail.

    Raises:
        LabelSetError: there is no such row.
    """
    from transformers import AutoTokenizer

    labels = open_label_set(path, allow_partial=partial)
    row = find_row(labels, name)
    tokenizer = AutoTokenizer.from_pretrained(labels.tokenizer_dir)

    def shown(token: int) -> str:
        return repr(tokenizer.decode([token]))

    lines: list[dict[str, Any]] = [
        {
            "position": position,
            "token": shown(token),
            "logprob": round(logprob, 3),
            "tail": round(tail, 4),
            "top": [[shown(i), round(p, 3)] for i, p in top],
        }
        for position, token, logprob, tail, top in row_labels(row)[:positions]
    ]
    if as_json:
        print(json.dumps({"id": row["id"][0].as_py(), "labels": lines}))
        return
    key = f"{row['id'][0]} (chunk {row['chunk'][0]}, sample {row['sample'][0]})"
    table = Table(title=f"{key}: {row['n_labels'][0]} labels", title_justify="left", box=None)
    for column in ("position", "token", "log p", "tail mass", f"teacher's top {TOP}: p"):
        table.add_column(column, justify="right" if column in ("position", "log p") else "left")
    for line in lines:
        tops = Text("  ".join(f"{token} {p:.2f}" for token, p in line["top"]))
        hit = bool(line["top"]) and line["top"][0][0] == line["token"]
        token = Text(line["token"], style="green" if hit else "")
        tail_mass, logprob = f"{line['tail']:.4f}", f"{line['logprob']:.2f}"
        table.add_row(str(line["position"]), token, logprob, tail_mass, tops)
    out.print(table)


def find_row(labels: LabelSet, name: str) -> Any:
    """The first row with id `name` (or any, for `first`) as a one-row table, verified."""
    for group in labels.row_groups:
        ids = labels.read_row_group(group, columns=["id"])["id"].to_pylist()
        if name in ids or (name == "first" and ids):
            index = ids.index(name) if name in ids else 0
            return labels.read_row_group(group).slice(index, 1)
    raise LabelSetError(
        "no row has this id",
        path=labels.path,
        row=name,
        mend="ids are in the column `id`; `--row first` shows one",
    )


def row_labels(row: Any) -> list[tuple[int, int, float, float, list[tuple[int, float]]]]:
    """(position, actual token, its logprob, tail mass, top 5 as (id, p)) of each label of a row."""
    labels = decode(row).labels
    ids = row["input_ids"][0].as_py()
    where = [t for span in row["spans"][0].as_py() for t in range(span["start"], span["stop"])]
    tails = pl.Series(labels.tail_logprob).exp().to_list()
    tops = [
        [(int(i), float(p)) for i, p in zip(i5, pl.Series(l5).exp())]
        for i5, l5 in zip(labels.topk_ids[:, :TOP], labels.topk_logprobs[:, :TOP])
    ]
    return [
        (t, ids[t], float(logprob), tail, top)
        for t, logprob, tail, top in zip(where, labels.token_logprob, tails, tops, strict=True)
    ]
