"""Settings of `labeler curate`: one frozen dataclass is the flags, the YAML file and the help."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from labeler.labeling.label_settings import SetLocation
from schemas.errors import SoftshardsError
from schemas.urls import last_part, read_location

ROWS = Group("Rules on single rows", sort_key=2)
OVERLAP = Group("Overlap with held-out text", sort_key=3)
VERIFY = Group("Your own verifier", sort_key=4)
CHOICE = Group("Choice among rows", sort_key=5)
RESULT = Group("Result", sort_key=6)


@Parameter(name="*")
@dataclass(frozen=True)
class CurateConfig:
    """The rules, in the order of application, and the output."""

    labels: SetLocation
    """Folder or URL of a label set, or a view of one."""

    _: KW_ONLY

    out: SetLocation
    """The view to write: NAME.view.json. With --split: NAME.train.view.json and so on. A view of
    a set behind a URL goes into the same store."""

    where: Annotated[tuple[str, ...], Parameter(group=ROWS)] = ()
    """Keep rows for which this SQL condition on columns holds: `"mean_nll < 4 and coverage > 0.9"`.
    May be given several times. The columns are listed in docs/format.md; kind, repetition, answer
    and text in docs/curation.md."""

    max_repetition: Annotated[float | None, Parameter(group=ROWS)] = None
    """Remove rows in which more than this share of the n-grams of labeled tokens are repetitions
    of earlier ones."""

    repetition_ngram: Annotated[int, Parameter(group=ROWS)] = 4
    """n of those n-grams, in tokens."""

    refusals: Annotated[bool, Parameter(group=ROWS)] = False
    """Remove rows whose answer begins with a refusal, by the patterns of docs/curation.md."""

    refusal_pattern: Annotated[tuple[str, ...], Parameter(group=ROWS)] = ()
    """Remove rows whose answer has a match of this regular expression anywhere. May be given
    several times; `(?i)` in front ignores case."""

    decontaminate: Annotated[tuple[str, ...], Parameter(group=OVERLAP)] = ()
    """Remove rows that share n-grams with this held-out label set, view or file of any kind that
    `labeler label` reads. May be given several times."""

    ngram: Annotated[int, Parameter(group=OVERLAP)] = 13
    """n of those n-grams."""

    ngram_of: Annotated[Literal["words", "tokens"], Parameter(group=OVERLAP)] = "words"
    """words: lower case, without punctuation. tokens: ids of the label set's tokenizer, for
    scripts without spaces between words."""

    overlap: Annotated[float, Parameter(group=OVERLAP)] = 0.0
    """Largest share of a row's n-grams that may be shared; 0 allows none."""

    common: Annotated[int, Parameter(group=OVERLAP)] = 10
    """Ignore n-grams that more than this many ids of the label set share: they are templates."""

    verify: Annotated[str | None, Parameter(group=VERIFY)] = None
    """module:function, called with each remaining row as a dict. True, or a number, keeps the row.
    """

    verify_command: Annotated[str | None, Parameter(group=VERIFY)] = None
    """Command that gets each remaining row as JSON on standard input. Exit code 0 keeps the row; a
    number on standard output is its score."""

    verify_timeout: Annotated[float, Parameter(group=VERIFY)] = 10.0
    """Seconds per row; a row that takes longer fails."""

    verify_jobs: Annotated[int, Parameter(group=VERIFY)] = 2
    """Processes that verify at the same time."""

    verify_min: Annotated[float | None, Parameter(group=VERIFY)] = None
    """Remove rows whose number is below this; without it, any number keeps a row."""

    verdicts: Annotated[Path | None, Parameter(group=VERIFY)] = None
    """File for the verdict on each verified row, for `trainer evaluate --answers`; written even if
    no row is left."""

    score: Annotated[str | None, Parameter(group=CHOICE, allow_leading_hyphen=True)] = None
    """SQL expression by which the best of several rows is kept, the highest first: `"-mean_nll"`.
    Columns: mean_nll, mean_entropy, coverage, n_tokens, n_labels, repetition, and verdict, the
    verifier's number. The default is verdict, if there is one. Ties go to the smallest id, chunk,
    sample."""

    dedup: Annotated[Literal["none", "exact", "near"], Parameter(group=CHOICE)] = "none"
    """exact: keep one of the rows with the same tokens. near: also one of the rows that share most
    of their n-grams (MinHash)."""

    dedup_on: Annotated[Literal["sequence", "labeled"], Parameter(group=CHOICE)] = "sequence"
    """Compare whole sequences with their prompts, or only the labeled tokens: the answers."""

    similarity: Annotated[float, Parameter(group=CHOICE)] = 0.8
    """Least Jaccard similarity of the sets of n-grams of near duplicates."""

    shingle: Annotated[int, Parameter(group=CHOICE)] = 5
    """n of those n-grams, in tokens."""

    best_of: Annotated[int | None, Parameter(group=CHOICE)] = None
    """Keep this many samples of each (id, chunk), the best by --score."""

    split: Annotated[tuple[str, ...], Parameter(group=RESULT)] = ()
    """NAME=SHARE: put this share of ids into a separate view, the rest into `train`:
    `--split heldout=0.05`. May be given several times."""

    seed: Annotated[int, Parameter(group=RESULT)] = 0
    """Seed of the split."""

    materialize: Annotated[
        Path | str | None,
        Parameter(name=["--materialize", "--materialise"], group=RESULT, converter=read_location),
    ] = None
    """Also write the rows as a label set into this folder, or to this URL in an object store; with
    --split, one folder per part in it."""

    codec: Annotated[Literal["plain", "compact"] | None, Parameter(group=RESULT)] = None
    """Codec of that set; by default the codec of LABELS."""

    examples: Annotated[int, Parameter(group=RESULT)] = 3
    """Removed rows to show for each rule."""

    allow_partial: Annotated[bool, Parameter(group=RESULT)] = False
    """Also take a set that is still being labeled."""

    dry_run: bool = False
    """Report, and write nothing."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print the report as JSON on standard output."""

    def __post_init__(self) -> None:
        from schemas.view import VIEW_SUFFIX  # imports Arrow, which --help does without

        name = last_part(self.out)
        if not name.endswith(VIEW_SUFFIX) or name == VIEW_SUFFIX:
            raise SoftshardsError(
                f"--out {self.out} is not the name of a view",
                hint=f"give a name that ends in {VIEW_SUFFIX}",
            )
        for name in ("repetition_ngram", "ngram", "shingle", "verify_jobs", "best_of"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SoftshardsError(f"--{_flag(name)} is {value}, it must be at least 1")
        for name in ("max_repetition", "overlap", "similarity"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise SoftshardsError(f"--{_flag(name)} is a share: from 0 to 1")
        if self.verify is not None and self.verify_command is not None:
            raise SoftshardsError("give --verify or --verify-command, not both")
        if self.verdicts is not None and not self.has_verifier:
            raise SoftshardsError("--verdicts needs --verify or --verify-command")
        if not self.verify_timeout > 0:
            raise SoftshardsError("--verify-timeout must be above 0 seconds")
        if self.best_of is not None and self.score is None and not self.has_verifier:
            raise SoftshardsError(
                "--best-of needs to know what is best",
                hint="give --score, --verify or --verify-command",
            )
        if self.codec is not None and self.materialize is None:
            raise SoftshardsError("--codec needs --materialize", hint="give both, or neither")

    @property
    def has_verifier(self) -> bool:
        """True if a verifier runs."""
        return self.verify is not None or self.verify_command is not None


def _flag(name: str) -> str:
    return name.replace("_", "-")
