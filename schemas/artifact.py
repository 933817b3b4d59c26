"""Names of label sets as tracker artifacts: the labeler logs them, the trainer refers to them."""

from __future__ import annotations

import re
from pathlib import Path

from schemas.remote import is_url

ARTIFACT_TYPE = "label-set"


def artifact_name(place: str | Path) -> str:
    """Return the default name of a set: its folder's, in letters, digits, `.`, `_` and `-`."""
    folder = Path(place) if is_url(place) else Path(place).resolve()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name).strip("-") or ARTIFACT_TYPE


def manifest_alias(self_digest: str) -> str:
    """Return the alias by which an artifact is found from the digest of its manifest."""
    return f"manifest-{self_digest[:16]}"


def artifact_reference(place: str | Path, self_digest: str) -> str:
    """Return NAME:ALIAS of a set that was logged under its default name."""
    return f"{artifact_name(place)}:{manifest_alias(self_digest)}"
