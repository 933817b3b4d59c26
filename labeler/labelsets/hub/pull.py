"""A label set from the Hugging Face Hub, checked."""

from __future__ import annotations

from pathlib import Path

from labeler.console import err, human_bytes
from labeler.labelsets.hub.complete_set import CARD, PARTS, belongs, open_whole
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
from schemas import Manifest, SoftshardsError
from schemas.errors import LabelSetError
from schemas.manifest import MANIFEST, read_manifest

DOWNLOADS = ".cache/huggingface"
"""Where the Hub's library notes in a folder what it downloaded: the mark of a pulled set."""


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
    check_name(place.repo)
    with hub_errors(place.url):
        commit = place.api.dataset_info(place.repo, revision=place.revision).sha
        manifest = remote_manifest(place, commit)
    if manifest is None or manifest.status != "complete":
        raise LabelSetError(
            "no complete label set is there: "
            + ("manifest.json is missing" if manifest is None else "it is not finished"),
            path=place.url,
            hint="check the name and --revision; a push that was interrupted is finished by the "
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
            hint="delete that file and pull again; if it comes back the same, it is altered on "
            "the Hub: pull an earlier --revision, or ask its owner to push it again",
        ) from error
    return shared(whole, place, commit)


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
            "there is something here that was not pulled", path=out, hint="give a new folder"
        )
    if (out / MANIFEST).is_file() and not replace:
        refuse_another(read_manifest(out), manifest, out)
