"""Settings of `labeler push`, `labeler pull` and `labeler artifact`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(frozen=True)
class PushConfig:
    """The label set to publish, and where."""

    labels: Path
    """Folder of a complete label set."""

    repo: str
    """OWNER/NAME of the dataset repository; created if it is missing."""

    _: KW_ONLY

    license: Annotated[str | None, Parameter(name=["--license", "--licence"])] = None
    """License of the set, as the Hub spells it (apache-2.0, cc-by-4.0, other, ...), or unknown.
    Required: nothing is guessed."""

    terms: str | None = None
    """Terms of the teacher's outputs: Markdown, or a file that holds it."""

    teacher: str | None = None
    """Public name of the teacher for the card; by default the last part of its path."""

    private: bool = False
    """Make the repository private; an existing public one is refused."""

    replace: bool = False
    """Replace the set that is in the repository, or an earlier state of this one."""

    revision: str | None = None
    """Branch to push to; created if it is missing."""

    endpoint: str | None = None
    """URL of the Hub; by default HF_ENDPOINT."""

    dry_run: bool = False
    """Check the set, print the card and what would be sent; send nothing."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print JSON on standard output."""


@Parameter(name="*")
@dataclass(frozen=True)
class PullConfig:
    """The label set to download, and where to."""

    repo: str
    """OWNER/NAME of the dataset repository."""

    out_dir: Annotated[Path, Parameter(name="--out")]
    """A new folder, or one that the same set was pulled into before."""

    _: KW_ONLY

    replace: bool = False
    """Replace another set, or an earlier state, that was pulled into OUT."""

    revision: str | None = None
    """Branch, tag or commit."""

    endpoint: str | None = None
    """URL of the Hub; by default HF_ENDPOINT."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print JSON on standard output."""


@Parameter(name="*")
@dataclass(frozen=True)
class ArtifactConfig:
    """The label set to log, and the tracker."""

    labels: Path
    """Folder of a complete label set."""

    _: KW_ONLY

    to: Literal["wandb", "trackio"]
    """The tracker. Its own settings (WANDB_MODE, TRACKIO_DIR, ...) decide where it writes."""

    project: str
    """Project of the tracker."""

    name: str | None = None
    """Name of the artifact; by default the folder's."""

    alias: Annotated[tuple[str, ...], Parameter(show_default=False)] = ()
    """Another name for this version, beside manifest-DIGEST; may be given several times."""

    upload: bool = False
    """Upload the files to the tracker, instead of references to them."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print JSON on standard output."""
