"""`labeler merge`: make one label set of several with the same identity."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import polars as pl

from labeler.console import human_bytes, out, progress
from labeler.labelsets.common.rows import Rows
from labeler.labelsets.common.selection import select_rows
from labeler.labelsets.derive.derive_config import MergeConfig
from labeler.labelsets.derive.recode import recode, require_mergeable
from schemas import LabelSet, SoftshardsError, open_label_set
from schemas.arrow import KEY_COLUMNS
from schemas.redact import redacted
from schemas.version import CODECS

SHOWN = 5
"""Keys to show in a message."""


class Merged(TypedDict):
    """The new set, as `--json` prints it; `left_out` counts the duplicates."""

    out: str
    codec: str
    rows: int
    labels: int
    bytes: int
    left_out: int


def run_merge(config: MergeConfig) -> int:
    """Merge, and print what the new set holds.

    Raises:
        SoftshardsError: as `merge`.
    """
    *sources, target = config.sets
    facts = merge(
        sources,
        target,
        codec=config.codec,
        on_duplicate=config.on_duplicate,
        drop_states=config.drop_states,
    )
    if config.as_json:
        print(json.dumps(facts))
        return 0
    left_out = f", {facts['left_out']} duplicates left out" if facts["left_out"] else ""
    out.print(
        f"{facts['out']}: {facts['rows']} rows, {facts['labels']} labels from {len(sources)} sets "
        f"in {facts['codec']}, {human_bytes(facts['bytes'])}{left_out}; every row compared"
    )
    return 0


def merge(
    sources: Sequence[Path | str],
    target: Path | str,
    *,
    codec: str | None,
    on_duplicate: str,
    drop_states: bool = False,
) -> Merged:
    """Write the rows of several label sets or views as one set.

    Args:
        sources: the sets, in the order of their rows in the new one.
        target: folder or URL of the new set; an unfinished one there is resumed.
        codec: `plain` or `compact`; None takes the codec of the first set.
        on_duplicate: `refuse` rows that share a key, or keep the `first`.
        drop_states: leave hidden states out.

    Raises:
        SoftshardsError: identities differ, a key occurs twice, or as `recode`.
    """
    if len(sources) < 2:
        raise SoftshardsError(
            "merge needs at least two label sets",
            hint="name them, then the new folder: `labeler merge A B OUT`",
        )
    sets = [open_label_set(path) for path in sources]
    require_mergeable(sets, drop_states=drop_states)
    distinct = _without_duplicates(sets, sources, on_duplicate)
    manifest = recode(
        distinct,
        target,
        codec=CODECS[codec] if codec else sets[0].manifest.codec,
        how="merge",
        drop_states=drop_states,
    )
    assert manifest.totals is not None, "recode closes the set"
    return {
        "out": redacted(str(target)),
        "codec": manifest.codec,
        "rows": manifest.totals.rows,
        "labels": manifest.totals.labels,
        "bytes": manifest.totals.bytes,
        "left_out": sum(labels.rows for labels in sets) - sum(labels.rows for labels in distinct),
    }


def _without_duplicates(
    sets: Sequence[LabelSet], sources: Sequence[Path | str], on_duplicate: str
) -> list[LabelSet]:
    """Return the sets, without rows whose key an earlier set has.

    Raises:
        SoftshardsError: there are such rows, and `on_duplicate` refuses them.
    """
    rows = _row_keys(sets)
    twice = ~rows.select(pl.struct(KEY_COLUMNS).is_first_distinct()).to_series()
    if not twice.any():
        return list(sets)
    if on_duplicate == "refuse":
        duplicates = rows.filter(twice)
        keys = [f"{id}/{chunk}/{sample}" for id, chunk, sample in duplicates[KEY_COLUMNS].rows()]
        more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
        raise SoftshardsError(
            f"an earlier set has the keys of {len(keys)} rows: {', '.join(keys[:SHOWN])}{more}",
            path=sources[duplicates["set"][0]],
            hint="--on-duplicate first keeps the row from the set that is named first",
        )
    kept = []
    for number, labels in enumerate(sets):
        own = rows["set"] == number
        mask = ~twice.filter(own).to_numpy()
        if mask.all():
            kept.append(labels)
            continue
        n_labels, n_tokens = (
            rows[name].filter(own).to_numpy().astype(np.int64) for name in ("n_labels", "n_tokens")
        )
        made: dict[str, object] = {
            "by": "merge",
            "without keys of": [redacted(str(p)) for p in sources[:number]],
        }
        if labels.view is not None:
            made["of"] = labels.view.made
        kept.append(select_rows(labels, mask, n_labels=n_labels, n_tokens=n_tokens, made=made))
    return kept


def _row_keys(sets: Sequence[LabelSet]) -> pl.DataFrame:
    """Return keys and sizes of all rows, with the number of their set."""
    frames = []
    with progress("rows") as bar:
        task = bar.add_task("reading keys", total=sum(labels.rows for labels in sets))
        for number, labels in enumerate(sets):
            for _, frame in Rows(labels).frames([*KEY_COLUMNS, "n_labels", "n_tokens"]):
                frames.append(frame.with_columns(set=pl.lit(number)))
                bar.advance(task, frame.height)
    if not frames:
        raise SoftshardsError("there are no rows to merge", path=sets[0].path)
    return pl.concat(frames)
