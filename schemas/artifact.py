"""What a label set is called as an artifact: the labeler logs it, the trainer says it uses it."""

from __future__ import annotations

import re
from pathlib import Path

from schemas.remote import is_url

ARTIFACT_TYPE = "label-set"


def artifact_name(place: str | Path) -> str:
    """The default name of the set in a folder or at a URL: letters, digits, `.`, `_`, `-`."""
    folder = Path(place) if is_url(place) else Path(place).resolve()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name).strip("-") or ARTIFACT_TYPE


def manifest_alias(self_digest: str) -> str:
    """The alias by which an artifact is found from the digest of its manifest."""
    return f"manifest-{self_digest[:16]}"


def artifact_reference(place: str | Path, self_digest: str) -> str:
    """NAME:ALIAS of a set, if it was logged under its default name."""
    return f"{artifact_name(place)}:{manifest_alias(self_digest)}"
