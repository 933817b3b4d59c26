"""Facts about a label set that need no labels: its size, identity and provenance."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from schemas.labelset import LabelSet, open_label_set


class SetFacts(TypedDict):
    """Facts about a label set, as JSON values."""

    path: str
    codec: str
    status: str
    rows: int
    labels: int
    tokens: int
    identity: dict[str, Any]
    identity_digest: str
    provenance: dict[str, Any]
    view: dict[str, Any] | None


def facts(
    path: Path | str,
    *,
    allow_partial: bool = False,
    storage_options: dict[str, Any] | None = None,
) -> SetFacts:
    """Return facts about a label set as JSON values, without reading labels.

    Args:
        path: a set's folder, a view, or the URL of either, as for `open_label_set`.
        allow_partial: accept a set that is still being labeled.
        storage_options: options of the URL's filesystem, for fsspec.

    Returns:
        `path`, `codec`, `status`, `rows`, `labels`, `tokens`, `identity`, `identity_digest`,
        `provenance`, and `view`: how a view was made, None for a set.

    Raises:
        LabelSetError: the set cannot be opened.
    """
    labels = open_label_set(path, allow_partial=allow_partial, storage_options=storage_options)
    return facts_of(path, labels)


def facts_of(path: Path | str, labels: LabelSet) -> SetFacts:
    """Return the facts about a set that was opened from `path`."""
    manifest = labels.manifest
    return {
        "path": str(path),
        "codec": manifest.codec,
        "status": manifest.status,
        "rows": labels.rows,
        "labels": labels.labels,
        "tokens": labels.tokens,
        "identity": manifest.identity.model_dump(mode="json"),
        "identity_digest": manifest.identity_digest,
        "provenance": manifest.provenance,
        "view": None if labels.view is None else labels.view.made,
    }
