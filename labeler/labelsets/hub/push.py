"""`labeler push`: publish a label set on the Hugging Face Hub, as a dataset repository."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from labeler.console import err, out
from labeler.labelsets.hub.complete_set import CompleteSet, open_complete_set
from labeler.labelsets.hub.dataset_card import Statement, dataset_card, publisher_statement
from labeler.labelsets.hub.hub_config import PushConfig
from labeler.labelsets.hub.hub_errors import hub_errors
from labeler.labelsets.hub.hub_repo import (
    REPO_TYPE,
    HubRepo,
    SharedSet,
    describe_shared,
    read_remote_manifest,
    require_repo_name,
    require_same_set,
)
from schemas.errors import SoftshardsError
from schemas.manifest import MANIFEST
from schemas.set_files import CARD, is_set_file
from schemas.set_paths import set_file


def run_push(config: PushConfig) -> int:
    """Push a label set and print its address; in a dry run, print the card.

    Raises:
        SoftshardsError: as `push`, or the license is missing.
    """
    statement = publisher_statement(config.license, config.terms, config.teacher)
    repo = HubRepo(name=config.repo, revision=config.revision, endpoint=config.endpoint)
    shared, card = push(
        config.labels,
        repo,
        statement,
        private=config.private,
        replace=config.replace,
        dry_run=config.dry_run,
    )
    if config.as_json:
        print(json.dumps(dataclasses.asdict(shared) | {"card": card}))
    elif config.dry_run:
        out.print(card)
        visibility = "private" if config.private else "public"
        err.print(f"would go to {shared.url} ({visibility} if it is new): {shared.sentence()}")
    else:
        out.print(f"pushed to {shared.url} at {shared.commit}: {shared.sentence()}")
    return 0


def push(
    path: Path,
    repo: HubRepo,
    statement: Statement,
    *,
    private: bool = False,
    replace: bool = False,
    dry_run: bool = False,
) -> tuple[SharedSet, str]:
    """Upload a label set and its card; an interrupted push is resumed.

    The card goes first, because the Hub checks it, and the manifest last: a repository with a
    manifest holds a complete set. Files of a replaced set disappear in the manifest's commit.

    Args:
        path: folder of a complete label set.
        repo: the repository and its branch; created if it is missing.
        statement: license, terms, and the teacher's name.
        private: make the repository private, and refuse a public one.
        replace: overwrite a different set, or an earlier state of this one.
        dry_run: send nothing, ask the Hub nothing.

    Returns:
        The facts of the pushed set, and the text of its card.

    Raises:
        SoftshardsError: the set is incomplete, the repository holds another, or the Hub refuses.
    """
    require_repo_name(repo.name)
    complete = open_complete_set(path)
    complete.warn_extra_files()
    card = str(dataset_card(complete, repo.name, statement))
    planned = describe_shared(complete, repo, None)
    if dry_run:
        return planned, card
    err.print(f"{complete.path} -> {repo.url}: {planned.sentence()}")
    with hub_errors(repo.url):
        _ensure_repository(repo, private)
        existing = None if replace else read_remote_manifest(repo, repo.revision)
        require_same_set(existing, complete.labels.manifest, repo.url)
        _commit(repo, "card", {CARD: card.encode()})
        _commit(repo, "data", _data(complete))
        manifest = set_file(complete.path, MANIFEST).read_bytes()
        commit = _commit(repo, "manifest", {MANIFEST: manifest}, keep=complete.files)
    return dataclasses.replace(planned, commit=commit), card


def _ensure_repository(repo: HubRepo, private: bool) -> None:
    """Create repository and branch if they are missing; refuse a public one if `private`."""
    from huggingface_hub.errors import RepositoryNotFoundError

    api = repo.api
    try:
        public = not api.dataset_info(repo.name).private
    except RepositoryNotFoundError:  # a token may allow a push, but not the creation of a dataset
        api.create_repo(repo.name, repo_type=REPO_TYPE, private=private or None, exist_ok=True)
        public = not api.dataset_info(repo.name).private
    if private and public:
        raise SoftshardsError(
            "the repository exists already and is public; nothing was sent",
            path=repo.url,
            hint="make it private on the Hub, push to another name, or leave out --private",
        )
    if repo.revision not in (None, "main"):
        api.create_branch(repo.name, repo_type=REPO_TYPE, branch=str(repo.revision), exist_ok=True)


def _data(complete: CompleteSet) -> dict[str, Path]:
    """Return the set's files but the manifest, each looked at once more: none is a link."""
    return {file: set_file(complete.path, file) for file in complete.files if file != MANIFEST}


def _commit(
    repo: HubRepo,
    what: str,
    files: Mapping[str, bytes | Path],
    *,
    keep: tuple[str, ...] | None = None,
) -> str:
    """Commit files, and return the commit; files that the Hub has already are not sent again.

    Args:
        repo: the repository.
        what: for the commit message.
        files: contents, or the files that hold them, by path.
        keep: drop all other files of label sets in the same commit; None drops nothing.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api = repo.api
    changes: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in files.items()
    ]
    if keep is not None:
        existing = api.list_repo_files(repo.name, repo_type=REPO_TYPE, revision=repo.revision)
        stale = [file for file in existing if is_set_file(file) and file not in set(keep)]
        changes += [CommitOperationDelete(path_in_repo=file) for file in stale]
    info = api.create_commit(
        repo.name,
        changes,
        repo_type=REPO_TYPE,
        revision=repo.revision,
        commit_message=f"Label set: {what}",
    )
    return str(info.oid)
