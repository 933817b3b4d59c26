"""`labeler pull`: download a label set from the Hugging Face Hub, and check every byte."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from labeler.console import err, human_bytes, out
from labeler.labelsets.hub.complete_set import PARTS, open_complete_set, warn_left_out
from labeler.labelsets.hub.hub_config import PullConfig
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
from schemas.atomic import TMP_PREFIX
from schemas.errors import LabelSetError, SoftshardsError
from schemas.manifest import MANIFEST, Manifest, read_manifest
from schemas.set_files import CARD, all_files, is_set_file
from schemas.set_paths import require_no_links

OF_THE_HUB = (CARD, ".gitattributes")
"""Files of a repository that belong to it, not to the set."""
DOWNLOADS = ".cache/huggingface"
"""Folder in which the Hub's library records its downloads: the mark of a pulled set."""


def run_pull(config: PullConfig) -> int:
    """Pull a label set, and print where it came from.

    Raises:
        SoftshardsError: as `pull`.
    """
    repo = HubRepo(name=config.repo, revision=config.revision, endpoint=config.endpoint)
    shared = pull(config.out_dir, repo, replace=config.replace)
    if config.as_json:
        print(json.dumps(dataclasses.asdict(shared)))
    else:
        source = f"{shared.url} at {shared.commit}"
        out.print(f"{shared.path}: pulled from {source}, good: {shared.sentence()}")
    return 0


def pull(out_dir: Path, repo: HubRepo, *, replace: bool = False) -> SharedSet:
    """Download a label set, and check every byte of it; an interrupted pull is resumed.

    Args:
        out_dir: a new or empty folder, or one that this set was pulled into before.
        repo: the repository and its revision, which is resolved to one commit at the start.
        replace: replace another set, or another state, that was pulled into the folder.

    Raises:
        SoftshardsError: `out_dir` holds something else, or the Hub refuses.
        LabelSetError: the download is not a complete label set, or was altered.
    """
    require_repo_name(repo.name)
    with hub_errors(repo.url):
        commit = repo.api.dataset_info(repo.name, revision=repo.revision).sha
        manifest = read_remote_manifest(repo, commit)
    if manifest is None or manifest.status != "complete":
        raise LabelSetError(
            "the repository holds no complete label set: "
            + ("manifest.json is missing" if manifest is None else "it is unfinished"),
            path=repo.url,
            hint="check the name and --revision; the same `labeler push` command finishes an "
            "interrupted push",
        )
    _require_target(out_dir, manifest, replace=replace)
    totals = manifest.totals
    if totals is not None:
        size = f"{human_bytes(totals.bytes)} of labels, {totals.rows} rows"
        err.print(f"{repo.url} at {commit} -> {out_dir}: {size}")
    api = repo.api
    with hub_errors(repo.url):
        # The manifest comes last: a folder without one does not pass for a label set.
        patterns = [CARD, *(part for part in PARTS if part != MANIFEST)]
        api.snapshot_download(
            repo.name,
            repo_type=REPO_TYPE,
            revision=commit,
            local_dir=out_dir,
            allow_patterns=patterns,
            ignore_patterns=[f"{TMP_PREFIX}*", f"*/{TMP_PREFIX}*"],
        )
        api.hf_hub_download(
            repo.name, MANIFEST, repo_type=REPO_TYPE, revision=commit, local_dir=out_dir
        )
        remote_files = api.list_repo_files(repo.name, repo_type=REPO_TYPE, revision=commit)
    warn_left_out([f for f in remote_files if not is_set_file(f) and f not in OF_THE_HUB])
    _delete_stale(out_dir, set(remote_files))
    try:
        complete = open_complete_set(out_dir)
        for file in complete.extra_files:
            if is_set_file(file):  # in a set of one's own, an append may have left it
                raise LabelSetError(f"{file} is superfluous: the set does not declare it")
    except LabelSetError as error:
        raise LabelSetError(
            f"the download is not the label set that was pushed: {error.what}",
            path=error.path or out_dir,
            hint="delete that file and pull again; if the error stays, the file is altered on the "
            "Hub: pull an earlier --revision, or ask the owner to push again",
        ) from error
    return describe_shared(complete, repo, commit)


def _delete_stale(out_dir: Path, remote_files: set[str]) -> None:
    """Delete files of an earlier state of the set that was pulled into the folder."""
    for file in list(all_files(out_dir)):
        if is_set_file(file) and file not in remote_files:
            (out_dir / file).unlink()


def _require_target(out_dir: Path, manifest: Manifest, *, replace: bool) -> None:
    """Refuse to pull over anything but an earlier pull of the same set."""
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return
    if not (out_dir / DOWNLOADS).is_dir():
        raise SoftshardsError(
            "the folder holds files that were not pulled", path=out_dir, hint="give a new folder"
        )
    require_no_links(out_dir)  # a download would write through them
    if (out_dir / MANIFEST).is_file() and not replace:
        require_same_set(read_manifest(out_dir), manifest, out_dir)
