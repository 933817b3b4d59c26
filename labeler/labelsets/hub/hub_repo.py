"""A place on the Hugging Face Hub, and what is known of the label set there."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labeler.console import human_bytes
from labeler.labelsets.hub.complete_set import WholeSet
from schemas import Manifest, SoftshardsError
from schemas.errors import LabelSetError
from schemas.manifest import MANIFEST, read_manifest

if TYPE_CHECKING:
    from huggingface_hub import HfApi

KIND = "dataset"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where on which Hub.

    Attributes:
        repo: OWNER/NAME of the dataset repository.
        revision: branch (or, to pull, tag or commit); None is `main`.
        endpoint: URL of the Hub; None is the library's own (HF_ENDPOINT).
    """

    repo: str
    revision: str | None = None
    endpoint: str | None = None

    @property
    def api(self) -> HfApi:
        """The library's client; it finds the token by itself (HF_TOKEN, `hf auth login`)."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, library_name="softshards")

    @property
    def url(self) -> str:
        """Address of the repository."""
        return f"{self.api.endpoint}/datasets/{self.repo}"


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What was, or would be, pushed or pulled.

    Attributes:
        url: address of the repository; commit: its newest commit, None for a dry run.
        path: the folder; files, bytes: its label set's; rows, labels: what is in it.
        manifest_digest: what tells this set from every other.
    """

    url: str
    commit: str | None
    path: str
    files: int
    bytes: int
    rows: int
    labels: int
    manifest_digest: str

    def sentence(self) -> str:
        """For people."""
        return (
            f"{self.files} files, {human_bytes(self.bytes)}, {self.rows} rows, "
            f"{self.labels} labels, manifest {self.manifest_digest[:16]}"
        )


def shared(whole: WholeSet, place: Place, commit: str | None) -> Shared:
    """What is said of a set that was pushed or pulled."""
    return Shared(
        url=place.url,
        commit=commit,
        path=str(whole.path),
        files=len(whole.files),
        bytes=whole.bytes,
        rows=whole.labels.rows,
        labels=whole.labels.labels,
        manifest_digest=whole.labels.manifest.self_digest,
    )


def check_name(repo: str) -> None:
    """Refuse what cannot be a repository's OWNER/NAME.

    Raises:
        SoftshardsError: it cannot.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
        if repo.count("/") != 1:
            raise HFValidationError("it has no owner")
    except HFValidationError as error:
        raise SoftshardsError(
            f"not a repository's name: {repo!r}", hint="give OWNER/NAME, as the Hub shows it"
        ) from error


def refuse_another(there: Manifest | None, ours: Manifest, where: Path | str) -> None:
    """Refuse to put a set in the place of another, or of another state of itself.

    Args:
        there: manifest of what is there, if anything is; ours: of what is to go there.
        where: the repository or folder.

    Raises:
        SoftshardsError: they differ.
    """
    if there is None or there.self_digest == ours.self_digest:
        return
    which = "other teacher or settings"
    if there.identity_digest == ours.identity_digest:
        which = "same teacher and settings: other rows, an earlier state, or another codec"
    raise SoftshardsError(
        f"there is a label set already, with manifest {there.self_digest[:16]} in place of "
        f"{ours.self_digest[:16]} ({which})",
        path=where,
        hint="choose another place, or pass --replace to put this set in its place",
    )


def remote_manifest(place: Place, revision: str | None) -> Manifest | None:
    """The manifest in the repository; None where there is none.

    Raises:
        LabelSetError: it is altered, or of an unknown version.
    """
    from huggingface_hub.errors import RemoteEntryNotFoundError

    with tempfile.TemporaryDirectory(prefix="softshards-hub-") as folder:
        try:
            place.api.hf_hub_download(
                place.repo, MANIFEST, repo_type=KIND, revision=revision, local_dir=folder
            )
        except RemoteEntryNotFoundError:
            return None
        try:
            return read_manifest(Path(folder))
        except LabelSetError as error:
            raise LabelSetError(error.what, path=f"{place.url}/{MANIFEST}") from error
