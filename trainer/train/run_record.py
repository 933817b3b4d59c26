"""What a run is, whether it is finished, and its result. No torch: a reuse is known at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from schemas import LabelSet, SoftshardsError, __version__, open_label_set
from schemas.atomic import write_atomic
from schemas.fingerprint import sha256_file, sha256_json, tokenizer_digest, weights_digest
from trainer.data.mixture import mixture_facts, open_mixture
from trainer.train.train_config import TrainConfig

FINAL = "final"
RESULT = "result.json"

Facts = dict[str, dict[str, Any]]


def run_facts(config: TrainConfig, labels: LabelSet) -> Facts:
    """All that decides what a run gives: settings, starting weights and label sets, by digest.

    Raises:
        SoftshardsError: there is no student to start from.
    """
    settings = config.decisive()
    settings["student"] = student_digest(config.student, from_config=config.from_config)
    digests: dict[str, Any] = {**labels.digests}
    if config.mix:
        parts = open_mixture(labels, config.mix, allow_partial=config.allow_partial)
        digests["mix"] = mixture_facts(parts)
    facts: Facts = {"config": settings, "labels": digests}
    if config.vocab_map and (config.student / "tokenizer.json").is_file():
        settings["student_tokenizer"] = tokenizer_digest(config.student)
    if config.patience and config.eval_labels is not None:  # these decide when the run ends
        facts["held_out"] = open_label_set(config.eval_labels).digests
    return facts


def student_digest(path: Path, *, from_config: bool) -> str:
    """Digest of the weights a run starts from, or of the configuration they are drawn for.

    Raises:
        SoftshardsError: there is nothing to start from.
    """
    try:
        if from_config:
            return sha256_json({"config": sha256_file(path / "config.json")})
        return weights_digest(path)
    except FileNotFoundError as error:
        raise SoftshardsError(
            "no model here" if from_config else str(error).removeprefix(f"{path} "),
            path=path,
            hint="give a local Hugging Face checkpoint folder (`hf download NAME --local-dir DIR`)",
        ) from error


def check_same_run(found: Facts, asked: Facts, out: Path) -> None:
    """Refuse to go on with a run that was started with other settings or data.

    Raises:
        SoftshardsError: with one line a setting that differs.
    """
    lines = []
    for group, values in asked.items():
        before = found.get(group, {})
        for name in sorted(values.keys() | before.keys()):
            if values.get(name) != before.get(name):
                then, now = before.get(name), values.get(name)
                lines.append(f"\n  {group}.{name}: then {then!r}, now {now!r}")
    if lines:
        raise SoftshardsError(
            f"the run here was started differently:{''.join(lines)}",
            path=out,
            hint="use the settings of then, or another --out",
        )


def read_finished(out: Path, facts: Facts) -> dict[str, Any] | None:
    """The result of a run that was trained to the end, or None.

    Raises:
        SoftshardsError: what is there was trained with other settings or data.
    """
    try:
        result: dict[str, Any] = json.loads((out / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not (out / FINAL / "config.json").is_file():
        return None
    check_same_run(result["facts"], facts, out)
    return result


def write_result(out: Path, content: dict[str, Any], labels: LabelSet) -> None:
    """Write OUT/result.json: from now on the run is finished."""
    manifest = labels.manifest
    label_set = {
        "path": labels.place,
        "identity": manifest.identity.model_dump(mode="json"),
        "provenance": manifest.provenance,
        "rows": labels.rows,
        "labels": labels.labels,
        "tokens": labels.tokens,
    }
    result = {**content, "label_set": label_set, "softshards": __version__}
    write_atomic(out / RESULT, json.dumps(result, indent=1) + "\n")
