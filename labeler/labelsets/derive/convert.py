"""`labeler convert`: write a label set or view in another codec."""

from __future__ import annotations

import json

from labeler.console import human_bytes, out
from labeler.labeling.writing.set_place import open_place
from labeler.labelsets.derive.derive_config import ConvertConfig
from labeler.labelsets.derive.recode import recode
from schemas import open_label_set
from schemas.journal import read_entries
from schemas.version import CODECS


def run_convert(config: ConvertConfig) -> int:
    """Write the rows in another codec, and print what it cost and what it saved.

    Raises:
        SoftshardsError: as `recode`.
    """
    labels = open_label_set(config.labels)
    with open_place(config.out) as place:
        target = place.name
        manifest = recode(
            [labels],
            place,
            codec=CODECS[config.codec],
            how="convert",
            drop_states=config.drop_states,
        )
        entries = read_entries(place.folder, manifest.planned_units)
    totals = manifest.totals
    assert totals is not None, "recode closes the set"
    parts = [entry.provenance["recoded"] for entry in entries]
    facts = {
        "out": target,
        "codec": manifest.codec,
        "rows": totals.rows,
        "labels": totals.labels,
        "bytes": totals.bytes,
        "hidden_bytes": totals.hidden_bytes or 0,
        "bytes_per_label": round(totals.bytes / max(1, totals.labels), 1),
        "max_error": max(part["max_error"] for part in parts),
        "kl": sum(p["kl"] * p["labels"] for p in parts) / max(1, sum(p["labels"] for p in parts)),
    }
    if config.as_json:
        print(json.dumps(facts))
        return 0
    hidden = f", hidden states {human_bytes(totals.hidden_bytes)}" if totals.hidden_bytes else ""
    if labels.states is not None and manifest.states is None:
        hidden = ", hidden states left out"
    out.print(
        f"{target}: {totals.rows} rows, {totals.labels} labels in {manifest.codec}, "
        f"{human_bytes(totals.bytes)} ({facts['bytes_per_label']} bytes per label){hidden}; the "
        "source has "
        f"{human_bytes(labels.stored_bytes)} in {labels.manifest.codec}\n"
        f"every row compared: largest error of a logprob {facts['max_error']:.4f} nats, "
        f"mean KL {facts['kl']:.1e} nats"
    )
    return 0
