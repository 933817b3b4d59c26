"""The dataset card of a label set: facts from its files, and the publisher's statement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from labeler.console import human_bytes
from labeler.labelsets.hub.complete_set import CompleteSet
from schemas.errors import SoftshardsError
from schemas.fingerprint import canonical_json
from schemas.manifest import Manifest, StatesRecord
from schemas.version import PLAIN_1

if TYPE_CHECKING:
    from huggingface_hub import DatasetCard

TEMPLATE = Path(__file__).with_name("card.md.jinja")


@dataclass(frozen=True, kw_only=True)
class Statement:
    """Facts that only the publisher knows; nothing is guessed.

    Attributes:
        license: the Hub's identifier of a license (`apache-2.0`, `other`, ...), or `unknown`.
        terms: terms of the teacher's outputs, in Markdown.
        teacher: public name of the teacher; by default the last part of its path.
    """

    license: str
    terms: str | None = None
    teacher: str | None = None


def publisher_statement(license: str | None, terms: str | None, teacher: str | None) -> Statement:
    """Return the publisher's statement from flags; `terms` may name a file.

    Raises:
        SoftshardsError: the license is missing.
    """
    if not license:
        raise SoftshardsError(
            "--license is missing, and no license is guessed",
            hint="give an identifier that the Hub knows (apache-2.0, cc-by-4.0, other, ...), or "
            "--license unknown to publish without one",
        )
    if terms is not None and len(terms) < 1024 and Path(terms).is_file():
        terms = Path(terms).read_text(encoding="utf-8")
    return Statement(license=license, terms=terms and terms.strip(), teacher=teacher)


def dataset_card(complete: CompleteSet, repo: str, statement: Statement) -> DatasetCard:
    """Return the card (README.md) of a label set: a YAML header for the Hub, Markdown for people.

    Args:
        complete: the set.
        repo: OWNER/NAME on the Hub.
        statement: the publisher's statement.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    manifest = complete.labels.manifest
    data = DatasetCardData(
        pretty_name=repo.split("/")[-1],
        license=statement.license,
        task_categories=["text-generation"],
        tags=["softshards", "soft-labels", "knowledge-distillation", "logprobs"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "shards/*.parquet"}],
            }
        ],
        softshards=header_facts(manifest, statement.teacher),
    )
    columns = pq.read_schema(complete.path / complete.labels.shards[0])
    card: DatasetCard = DatasetCard.from_template(
        data,
        template_path=str(TEMPLATE),
        repo_id=repo,
        identity=manifest.identity,
        facts=_facts(complete, statement.teacher),
        license=statement.license,
        terms=statement.terms,
        plain=manifest.codec == PLAIN_1,
        codec=manifest.codec,
        columns=[(field.name, str(field.type).replace(" not null", "")) for field in columns],
        manifest_digest=manifest.self_digest,
    )
    return card


def teacher_name(manifest: Manifest, teacher: str | None = None) -> str:
    """Return `teacher` if it is given, else the last part of the path it was loaded from."""
    return teacher or Path(str(manifest.provenance.get("teacher") or "unknown")).name


def header_facts(manifest: Manifest, teacher: str | None = None) -> dict[str, object]:
    """Return the facts of a label set as JSON values, without paths of the machine it was made on.

    Args:
        manifest: the set's manifest.
        teacher: public name of the teacher; by default as in `teacher_name`.
    """
    identity, totals = manifest.identity, manifest.totals
    facts: dict[str, object] = {
        "teacher": teacher_name(manifest, teacher),
        "format_version": manifest.format_version,
        "codec": manifest.codec,
        "k": identity.k,
        "mode": identity.mode,
        "dtype": identity.dtype,
        "vocab_size": identity.vocab_size,
        "weights_digest": identity.weights,
        "tokenizer_digest": identity.tokenizer,
        "identity_digest": manifest.identity_digest,
        "manifest_digest": manifest.self_digest,
    }
    return facts | ({} if totals is None else totals.model_dump())


def _facts(complete: CompleteSet, teacher: str | None) -> dict[str, str]:
    """Return name -> value of the card's table, in Markdown."""
    manifest = complete.labels.manifest
    identity, template = manifest.identity, manifest.identity.chat_template
    rejects = f", {manifest.totals.rejects} records rejected" if manifest.totals else ""
    rows = {
        "teacher": teacher_name(manifest, teacher),
        "teacher's weights": f"`{identity.weights}` (SHA-256, {identity.weights_scope})",
        "teacher's config": f"`{identity.model_config_digest}`",
        "tokenizer": f"`{identity.tokenizer}`, {identity.vocab_size} ids; files in `tokenizer/`",
        "chat template": f"`{template}`" if template else "none applied",
        "dtype": f"{identity.dtype}, output projection {identity.head_dtype}",
        "quantization": identity.quantization or "none",
        "made by": "scoring given text" if identity.mode == "score" else "generating",
        "sampling": "none" if identity.sampling is None else _json(identity.sampling.model_dump()),
        "k": str(identity.k),
        "nucleus cut": None if identity.top_p_labels is None else str(identity.top_p_labels),
        "drawn ids per position": None if identity.draws is None else str(identity.draws),
        **{name: f"`{text}`" for name, text in identity.late_settings.items()},
        "hidden states": None if manifest.states is None else _states(manifest.states),
        "longest sequence": f"{identity.max_length} tokens, overlap {identity.overlap}",
        "labeled spans": identity.spans,
        "rendering": None if identity.rendering is None else _json(identity.rendering),
        "codec": f"`{manifest.codec}`, format version {manifest.format_version}",
        "rows": f"{complete.labels.rows:,} sequences{rejects}",
        "tokens": f"{complete.labels.tokens:,}",
        "labels": f"{complete.labels.labels:,} positions",
        "size": human_bytes(complete.bytes),
        "identity digest": f"`{manifest.identity_digest}`",
    }
    return {name: value.replace("|", "\\|") for name, value in rows.items() if value is not None}


def _states(states: StatesRecord) -> str:
    layers = ", ".join(f"`{layer}`" for layer in states.layers)
    measured = "" if states.kl_measured is None else f", mean KL {states.kl_measured:.2g} nats"
    return f"{layers} in `hidden/`, {states.dimensions} dimensions, `{states.codec}`{measured}"


def _json(value: dict[str, object]) -> str:
    return f"`{canonical_json(value).decode()}`"
