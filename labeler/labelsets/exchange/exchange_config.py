"""Settings of `labeler export` and `labeler import`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from labeler.labeling.label_settings import SetLocation
from schemas.errors import SoftshardsError
from schemas.urls import read_location


@Parameter(name="*")
@dataclass(frozen=True)
class ExportConfig:
    """The label set to export, and the file to write."""

    labels: SetLocation
    """Folder or URL of a complete label set, or a view of one."""

    file: SetLocation
    """The file to write, or its URL in an object store: .parquet for distillkit and axolotl;
    .jsonl or .jsonl.zst for trl and jsonl."""

    _: KW_ONLY

    format: Literal["distillkit", "axolotl", "trl", "jsonl"]
    """distillkit: raw rows of DistillKit (token_ids, top_values). axolotl: the columns of its KD
    collator (target_token_ids, target_logprobs, target_mask). trl: prompt and completion as text,
    without soft labels. jsonl: everything, one object per row."""

    limit: int | None = None
    """Write at most this many rows."""

    lossy: bool = False
    """Also write rows that would lose more than the format always loses: a different context for
    the student; for trl, labels in several stretches."""

    replace: bool = False
    """Overwrite an existing file."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print the content of FILE.softshards.json on standard output."""


@Parameter(name="*")
@dataclass(frozen=True)
class ImportConfig:
    """The files to import, what is known about them, and the new label set."""

    inputs: tuple[Path, ...]
    """Files (.parquet, .jsonl, .jsonl.zst, .jsonl.gz) or folders of them."""

    _: KW_ONLY

    out_dir: Annotated[Path | str | None, Parameter(name="--out", converter=read_location)] = None
    """Folder of the new label set, or its URL in an object store."""

    tokenizer: Path
    """Folder of the tokenizer that produced the ids."""

    teacher: str
    """Folder of the checkpoint that produced the labels, which is fingerprinted; else its name, or
    unknown."""

    dtype: str = "unknown"
    """dtype that the teacher ran in, if you know it."""

    temperature: float = 1.0
    """Temperature of the probabilities. It must be 1: temperature-1 values cannot be recovered from
    a top-k at another temperature."""

    format: Literal["distillkit", "axolotl", "jsonl"] | None = None
    """Format of the files; by default recognized by the columns, which docs/interchange.md lists.
    """

    shift: int | None = None
    """Entry t holds the distribution of the token at t + SHIFT. By default 1 for distillkit and
    axolotl; for jsonl 0, counted from the tokens in the spans."""

    kind: Literal["text", "answer", "thinking", "tool_call", "prompt"] = "text"
    """Kind of the spans, where the file names none."""

    allow: Annotated[
        tuple[Literal["shift", "renormalized", "renormalised"], ...],
        Parameter(show_default=False),
    ] = ()
    """Problems to accept: shift (labels that look shifted), renormalized (a top-k that sums to 1,
    so that the tail is lost). May be given several times."""

    codec: Literal["plain", "compact"] = "plain"
    """Codec of the set."""

    max_reject_share: float = 0.5
    """Stop when more than this share of rows is bad."""

    dry_run: bool = False
    """Show how the first row is read, and write nothing."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print JSON on standard output."""

    def __post_init__(self) -> None:
        if self.temperature != 1:
            raise SoftshardsError(
                f"the probabilities are at temperature {self.temperature:g}: temperature-1 values "
                "cannot be recovered from a top-k alone",
                hint="get log-probabilities at temperature 1 from the teacher",
            )
        if self.out_dir is None and not self.dry_run:
            raise SoftshardsError(
                "--out is missing", hint="name the new set's folder, or --dry-run"
            )

    @property
    def allowed(self) -> frozenset[str]:
        """Names in `allow`, in US spelling."""
        return frozenset(name.replace("alised", "alized") for name in self.allow)
