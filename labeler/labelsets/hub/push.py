"""A label set to the Hugging Face Hub, as a dataset repository."""

from __future__ import annotations

from pathlib import Path

from labeler.console import err
from labeler.labelsets.hub.complete_set import CARD, LEFTOVERS, PARTS, belongs, open_whole
from labeler.labelsets.hub.dataset_card import Statement, dataset_card
from labeler.labelsets.hub.hub_errors import hub_errors
from labeler.labelsets.hub.hub_repo import (
    KIND,
    Place,
    Shared,
    check_name,
    refuse_another,
    remote_manifest,
    shared,
)
from schemas import SoftshardsError
from schemas.manifest import MANIFEST


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
        stated: license, terms, and the teacher's name.
        private: make it private, and refuse one that is public.
        replace: put the set in the place of another, or of an earlier state of itself.
        dry_run: send nothing, ask nothing.

    Returns:
        What was pushed, and the text of the card.

    Raises:
        SoftshardsError: the set is not whole, the repository holds another, or the Hub refuses.
    """
    check_name(place.repo)
    whole = open_whole(path)
    whole.say_others()
    card = str(dataset_card(whole, place.repo, stated))
    if dry_run:
        return shared(whole, place, None), card
    err.print(f"{whole.path} -> {place.url}: {shared(whole, place, None).sentence()}")
    with hub_errors(place.url):
        _make_repository(place, private)
        there = None if replace else remote_manifest(place, place.revision)
        refuse_another(there, whole.labels.manifest, place.url)
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
    return shared(whole, place, commit), card


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
            hint="make it private on the Hub, push to another name, or leave out --private",
        )
    if place.revision not in (None, "main"):
        api.create_branch(place.repo, repo_type=KIND, branch=str(place.revision), exist_ok=True)


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
