"""The dataset card of a label set: what it says of itself, and what its publisher states."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from labeler.console import human_bytes
from labeler.labelsets.hub.complete_set import WholeSet
from schemas import Manifest, SoftshardsError
from schemas.fingerprint import canonical_json
from schemas.version import PLAIN_1

if TYPE_CHECKING:
    from huggingface_hub import DatasetCard

TEMPLATE = Path(__file__).with_name("card.md.jinja")


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What the files cannot say, and the publisher must; nothing of it is guessed.

    Attributes:
        license: the Hub's identifier of a license (`apache-2.0`, `other`, ...), or `unknown`.
        terms: terms of the teacher's outputs, in Markdown.
        teacher: public name of the teacher; by default the last part of its path.
    """

    license: str
    terms: str | None = None
    teacher: str | None = None


def statement(license: str | None, terms: str | None, teacher: str | None) -> Statement:
    """The publisher's statement from flags; `terms` may name a file.

    Raises:
        SoftshardsError: there is no license.
    """
    if not license:
        raise SoftshardsError(
            "no license is stated, and none is guessed",
            hint="pass --license with an identifier that the Hub knows (apache-2.0, cc-by-4.0, "
            "other, ...), or --license unknown to publish without one",
        )
    if terms is not None and len(terms) < 1024 and Path(terms).is_file():
        terms = Path(terms).read_text(encoding="utf-8")
    return Statement(license=license, terms=terms and terms.strip(), teacher=teacher)


def dataset_card(whole: WholeSet, repo: str, stated: Statement) -> DatasetCard:
    """The card (README.md) of a label set: YAML header for the Hub, Markdown for people.

    Args:
        whole: the set.
        repo: OWNER/NAME on the Hub.
        stated: what its publisher states.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    manifest = whole.labels.manifest
    data = DatasetCardData(
        pretty_name=repo.split("/")[-1],
        license=stated.license,
        task_categories=["text-generation"],
        tags=["softshards", "soft-labels", "knowledge-distillation", "logprobs"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "shards/*.parquet"}],
            }
        ],
        softshards=header_facts(manifest, stated.teacher),
    )
    columns = pq.read_schema(whole.path / whole.labels.shards[0])
    return DatasetCard.from_template(
        data,
        template_path=str(TEMPLATE),
        repo_id=repo,
        identity=manifest.identity,
        facts=_facts(whole, stated.teacher),
        license=stated.license,
        terms=stated.terms,
        plain=manifest.codec == PLAIN_1,
        codec=manifest.codec,
        columns=[(field.name, str(field.type).replace(" not null", "")) for field in columns],
        manifest_digest=manifest.self_digest,
    )


def teacher_name(manifest: Manifest, stated: str | None = None) -> str:
    """What to call the teacher: as stated, else the last part of the path it was loaded from."""
    return stated or Path(str(manifest.provenance.get("teacher") or "unknown")).name


def header_facts(manifest: Manifest, teacher: str | None = None) -> dict[str, Any]:
    """Facts of a label set for machines: JSON values, no paths of the machine it was made on."""
    identity, totals = manifest.identity, manifest.totals
    facts = {
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


def _facts(whole: WholeSet, teacher: str | None) -> dict[str, str]:
    """Name -> value of the card's table, in Markdown."""
    manifest = whole.labels.manifest
    identity = manifest.identity
    rejects = f", {manifest.totals.rejects} records rejected" if manifest.totals else ""
    rows = {
        "teacher": teacher_name(manifest, teacher),
        "teacher's weights": f"`{identity.weights}` (SHA-256, {identity.weights_scope})",
        "teacher's config": f"`{identity.model_config_digest}`",
        "tokenizer": f"`{identity.tokenizer}`, {identity.vocab_size} ids; files in `tokenizer/`",
        "chat template": f"`{identity.chat_template}`"
        if identity.chat_template
        else "none applied",
        "dtype": f"{identity.dtype}, output projection {identity.head_dtype}",
        "quantization": identity.quantization or "none",
        "made by": "scoring given text" if identity.mode == "score" else "generating",
        "sampling": "none" if identity.sampling is None else _json(identity.sampling.model_dump()),
        "k": str(identity.k),
        "nucleus cut": None if identity.top_p_labels is None else str(identity.top_p_labels),
        "drawn ids a position": None if identity.draws is None else str(identity.draws),
        "longest sequence": f"{identity.max_length} tokens, overlap {identity.overlap}",
        "labeled spans": identity.spans,
        "rendering": None if identity.rendering is None else _json(identity.rendering),
        "codec": f"`{manifest.codec}`, format version {manifest.format_version}",
        "rows": f"{whole.labels.rows:,} sequences{rejects}",
        "tokens": f"{whole.labels.tokens:,}",
        "labels": f"{whole.labels.labels:,} positions",
        "size": human_bytes(whole.bytes),
        "identity digest": f"`{manifest.identity_digest}`",
    }
    return {name: value.replace("|", "\\|") for name, value in rows.items() if value is not None}


def _digest(value: str | None) -> str:
    return "none applied" if value is None else f"`{value}`"


def _json(value: dict[str, Any]) -> str:
    return f"`{canonical_json(value).decode()}`"
