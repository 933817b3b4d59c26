"""A dataset repository on the Hugging Face Hub, and the label set that it holds."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labeler.console import human_bytes
from labeler.labelsets.hub.complete_set import CompleteSet
from schemas.errors import LabelSetError, SoftshardsError
from schemas.manifest import MANIFEST, Manifest, read_manifest

if TYPE_CHECKING:
    from huggingface_hub import HfApi

REPO_TYPE = "dataset"


@dataclass(frozen=True, kw_only=True)
class HubRepo:
    """A dataset repository at one revision.

    Attributes:
        name: OWNER/NAME of the dataset repository.
        revision: branch (or, to pull, tag or commit); None is `main`.
        endpoint: URL of the Hub; None is the library's default (HF_ENDPOINT).
    """

    name: str
    revision: str | None = None
    endpoint: str | None = None

    @property
    def api(self) -> HfApi:
        """The library's client, which finds the token by itself (HF_TOKEN, `hf auth login`)."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, library_name="softshards")

    @property
    def url(self) -> str:
        """Address of the repository."""
        return f"{self.api.endpoint}/datasets/{self.name}"


@dataclass(frozen=True, kw_only=True)
class SharedSet:
    """A label set that was pushed or pulled, or would be.

    Attributes:
        url: address of the repository.
        commit: the commit that holds the set, None for a dry run.
        path: the set's folder.
        files: number of files of the set.
        bytes: their total size.
        rows: rows of the set.
        labels: labels of the set.
        manifest_digest: identifies this state of this set.
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
        """Return the numbers as text."""
        return (
            f"{self.files} files, {human_bytes(self.bytes)}, {self.rows} rows, "
            f"{self.labels} labels, manifest {self.manifest_digest[:16]}"
        )


def describe_shared(complete: CompleteSet, repo: HubRepo, commit: str | None) -> SharedSet:
    """Return the facts of a set that was pushed to or pulled from `repo`."""
    return SharedSet(
        url=repo.url,
        commit=commit,
        path=str(complete.path),
        files=len(complete.files),
        bytes=complete.bytes,
        rows=complete.labels.rows,
        labels=complete.labels.labels,
        manifest_digest=complete.labels.manifest.self_digest,
    )


def require_repo_name(name: str) -> None:
    """Refuse a name that is not OWNER/NAME.

    Raises:
        SoftshardsError: the name is invalid.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
        if name.count("/") != 1:
            raise HFValidationError("the owner is missing")
    except HFValidationError as error:
        raise SoftshardsError(
            f"not a repository's name: {name!r}", hint="give OWNER/NAME, as the Hub shows it"
        ) from error


def require_same_set(existing: Manifest | None, new: Manifest, where: Path | str) -> None:
    """Refuse to overwrite a different set, or a different state of the same set.

    Args:
        existing: manifest of the set that is at `where`; None if there is none.
        new: manifest of the set that would replace it.
        where: the repository or folder.

    Raises:
        SoftshardsError: the two differ.
    """
    if existing is None or existing.self_digest == new.self_digest:
        return
    difference = "different teacher or settings"
    if existing.identity_digest == new.identity_digest:
        difference = "same teacher and settings: different rows, an earlier state, or another codec"
    raise SoftshardsError(
        f"a label set is there already, with manifest {existing.self_digest[:16]} instead of "
        f"{new.self_digest[:16]} ({difference})",
        path=where,
        hint="choose another place, or replace the set with --replace",
    )


def read_remote_manifest(repo: HubRepo, revision: str | None) -> Manifest | None:
    """Return the manifest in the repository; None if there is none.

    Raises:
        LabelSetError: the manifest is altered, or of an unknown version.
    """
    from huggingface_hub.errors import RemoteEntryNotFoundError

    with tempfile.TemporaryDirectory(prefix="softshards-hub-") as folder:
        try:
            repo.api.hf_hub_download(
                repo.name, MANIFEST, repo_type=REPO_TYPE, revision=revision, local_dir=folder
            )
        except RemoteEntryNotFoundError:
            return None
        try:
            return read_manifest(Path(folder))
        except LabelSetError as error:
            raise LabelSetError(error.what, path=f"{repo.url}/{MANIFEST}") from error
