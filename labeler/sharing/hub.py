"""A label set to and from the Hugging Face Hub, as a dataset repository."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labeler.console import err, human_bytes
from labeler.sharing.card import Statement, dataset_card
from labeler.sharing.hub_errors import hub_errors
from labeler.sharing.whole import CARD, LEFTOVERS, PARTS, WholeSet, belongs, open_whole
from schemas import Manifest, SoftshardsError
from schemas.errors import LabelSetError
from schemas.manifest import MANIFEST, read_manifest

if TYPE_CHECKING:
    from huggingface_hub import HfApi

KIND = "dataset"
DOWNLOADS = ".cache/huggingface"
"""Where the Hub's library notes in a folder what it downloaded: the mark of a pulled set."""


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


def push(
    path: Path,
    place: Place,
    stated: Statement,
    *,
    private: bool = False,
    replace: bool = False,
    dry_run: bool = False,
) -> tuple[Shared, str]:
    """Upload a label set and its card. The same command goes on with what an earlier one left.

    The card goes first, for the Hub checks it, the manifest last: a repository with a manifest
    holds a whole set. Files of a set that is replaced leave with the manifest's commit.

    Args:
        path: folder of a complete label set.
        place: the repository, which is made where it is missing, and its branch.
        stated: licence, terms, and the teacher's name.
        private: make it private, and refuse one that is public.
        replace: put the set in the place of another, or of an earlier state of itself.
        dry_run: send nothing, ask nothing.

    Returns:
        What was pushed, and the text of the card.

    Raises:
        SoftshardsError: the set is not whole, the repository holds another, or the Hub refuses.
    """
    _check_name(place.repo)
    whole = open_whole(path)
    whole.say_others()
    card = str(dataset_card(whole, place.repo, stated))
    if dry_run:
        return _shared(whole, place, None), card
    err.print(f"{whole.path} -> {place.url}: {_shared(whole, place, None).sentence()}")
    with hub_errors(place.url):
        _make_repository(place, private)
        there = None if replace else _remote_manifest(place, place.revision)
        _refuse_another(there, whole.labels.manifest, place.url)
        _commit(place, "card", {CARD: card.encode()})
        place.api.upload_folder(
            repo_id=place.repo,
            repo_type=KIND,
            folder_path=whole.path,
            revision=place.revision,
            allow_patterns=[part for part in PARTS if part != MANIFEST],
            ignore_patterns=list(LEFTOVERS),
            commit_message="Label set: data",
        )
        manifest = (whole.path / MANIFEST).read_bytes()
        commit = _commit(place, "manifest", {MANIFEST: manifest}, keep=whole.files)
    return _shared(whole, place, commit), card


def pull(out: Path, place: Place, *, replace: bool = False) -> Shared:
    """Download a label set, and check every byte of it. The same command goes on.

    Args:
        out: an empty or new folder, or one that this set was pulled into before.
        place: the repository and its revision, which is resolved to one commit at the start.
        replace: put the set in the place of one that was pulled here before.

    Raises:
        SoftshardsError: `out` holds something else, or the Hub refuses.
        LabelSetError: what came is no whole label set, or was altered.
    """
    _check_name(place.repo)
    with hub_errors(place.url):
        commit = place.api.dataset_info(place.repo, revision=place.revision).sha
        manifest = _remote_manifest(place, commit)
    if manifest is None or manifest.status != "complete":
        raise LabelSetError(
            "no complete label set is there: "
            + ("manifest.json is missing" if manifest is None else "it is not finished"),
            path=place.url,
            mend="check the name and --revision; a push that was interrupted is finished by the "
            "same `labeler push` command",
        )
    _check_target(out, manifest, replace=replace)
    totals = manifest.totals
    if totals is not None:
        what = f"{human_bytes(totals.bytes)} of labels, {totals.rows} rows"
        err.print(f"{place.url} at {commit} -> {out}: {what}")
    api = place.api
    with hub_errors(place.url):
        # The manifest last: a folder without one is taken for a label set by nobody.
        patterns = [CARD, *(part for part in PARTS if part != MANIFEST)]
        api.snapshot_download(
            place.repo, repo_type=KIND, revision=commit, local_dir=out, allow_patterns=patterns
        )
        api.hf_hub_download(place.repo, MANIFEST, repo_type=KIND, revision=commit, local_dir=out)
        there = api.list_repo_files(place.repo, repo_type=KIND, revision=commit)
    _drop_stale(out, set(there))
    try:
        whole = open_whole(out)
    except LabelSetError as error:
        raise LabelSetError(
            f"what was downloaded is not the label set that was pushed: {error.what}",
            path=error.path or out,
            mend="delete that file and pull again; if it comes back the same, it is altered on "
            "the Hub: pull an earlier --revision, or ask its owner to push it again",
        ) from error
    return _shared(whole, place, commit)


def _shared(whole: WholeSet, place: Place, commit: str | None) -> Shared:
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


def _check_name(repo: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
        if repo.count("/") != 1:
            raise HFValidationError("it has no owner")
    except HFValidationError as error:
        raise SoftshardsError(
            f"not a repository's name: {repo!r}", mend="give OWNER/NAME, as the Hub shows it"
        ) from error


def _make_repository(place: Place, private: bool) -> None:
    """Make repository and branch where they are missing; refuse a public one to --private."""
    from huggingface_hub.errors import RepositoryNotFoundError

    api = place.api
    try:
        public = not api.dataset_info(place.repo).private
    except RepositoryNotFoundError:  # a token may be good for pushing, and not for making one
        api.create_repo(place.repo, repo_type=KIND, private=private or None, exist_ok=True)
        public = not api.dataset_info(place.repo).private
    if private and public:
        raise SoftshardsError(
            "the repository is there already, and public; nothing was sent",
            path=place.url,
            mend="make it private on the Hub, push to another name, or leave out --private",
        )
    if place.revision not in (None, "main"):
        api.create_branch(place.repo, repo_type=KIND, branch=str(place.revision), exist_ok=True)


def _refuse_another(there: Manifest | None, ours: Manifest, where: Path | str) -> None:
    """Refuse to put a set in the place of another state or another set without being told to."""
    if there is None or there.self_digest == ours.self_digest:
        return
    which = "other teacher or settings"
    if there.identity_digest == ours.identity_digest:
        which = "same teacher and settings: other rows, an earlier state, or another codec"
    raise SoftshardsError(
        f"there is a label set already, with manifest {there.self_digest[:16]} in place of "
        f"{ours.self_digest[:16]} ({which})",
        path=where,
        mend="choose another place, or pass --replace to put this set in its place",
    )


def _remote_manifest(place: Place, revision: str | None) -> Manifest | None:
    """The manifest in the repository, checked; None where there is none."""
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


def _commit(
    place: Place, what: str, files: dict[str, bytes], *, keep: tuple[str, ...] | None = None
) -> str:
    """Commit small files; with `keep`, drop all files of label sets that are not among them."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api = place.api
    changes: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in files.items()
    ]
    if keep is not None:
        there = api.list_repo_files(place.repo, repo_type=KIND, revision=place.revision)
        stale = [file for file in there if belongs(file) and file not in set(keep)]
        changes += [CommitOperationDelete(path_in_repo=file) for file in stale]
    info = api.create_commit(
        place.repo,
        changes,
        repo_type=KIND,
        revision=place.revision,
        commit_message=f"Label set: {what}",
    )
    return str(info.oid)


def _drop_stale(out: Path, there: set[str]) -> None:
    """Delete what an earlier state of the set had, which was pulled here before."""
    for path in out.rglob("*"):
        file = path.relative_to(out).as_posix()
        if path.is_file() and belongs(file) and file not in there:
            path.unlink()


def _check_target(out: Path, manifest: Manifest, *, replace: bool) -> None:
    """Refuse to pull over anything but an earlier pull of the same set."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / DOWNLOADS).is_dir():
        raise SoftshardsError(
            "there is something here that was not pulled", path=out, mend="give a new folder"
        )
    if (out / MANIFEST).is_file() and not replace:
        _refuse_another(read_manifest(out), manifest, out)
