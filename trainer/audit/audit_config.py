"""Settings of `trainer audit` and `trainer audit canaries`. Attribute docstrings are the help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from schemas.errors import SoftshardsError

PREFIXES = Group("Memorization", sort_key=2)
PATTERNS = Group("Personal data and secrets", sort_key=3)
CANARIES = Group("Canaries", sort_key=4)

PII = (
    *("EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "IP_ADDRESS", "MAC_ADDRESS"),
    *("CRYPTO", "US_SSN", "UK_NHS"),
)
"""Kinds of personal data that are looked for by default."""
FEWEST_DIGITS, MOST_DIGITS = 6, 18


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """The settings of `trainer audit`."""

    labels: str | Path
    """Label set that the model was trained on: a folder, a view, or the URL of either."""

    model: tuple[Path, ...]
    """Student to audit: a checkpoint folder, or OWNER/NAME[@REVISION] on the Hub; repeat for
    more."""

    out: Path
    """JSON file for the results; models already in it are not audited again. The rules that drop
    the rows found are written beside it, as NAME.rules.yaml."""

    teacher: Path | None = None
    """The teacher: it tells whether the student could have it from there."""

    control: tuple[Path, ...] = ()
    """Model that never saw the label set, such as the untrained student: it tells what anybody
    would continue in the same way; repeat for more."""

    rows: Annotated[int, Parameter(group=PREFIXES)] = 200
    """Rows to draw for prefixes, and at most as many values found by patterns to ask for."""

    prefix: Annotated[int, Parameter(group=PREFIXES)] = 50
    """Tokens of a row that the model is given."""

    continuation: Annotated[int, Parameter(group=PREFIXES)] = 50
    """Tokens that it must continue exactly; they are labeled ones."""

    ngram: Annotated[int, Parameter(group=PREFIXES)] = 8
    """n of the n-grams of tokens by which near-verbatim copies are found."""

    scan_rows: Annotated[int, Parameter(group=PATTERNS)] = 10_000
    """Rows to search for personal data and secrets; 0 leaves the search out."""

    pii: Annotated[tuple[str, ...], Parameter(group=PATTERNS)] = PII
    """Kinds of personal data to look for, by Presidio's names; repeat for more. They replace the
    default. docs/audit.md says which there are."""

    pii_score: Annotated[float, Parameter(group=PATTERNS)] = 0.4
    """Least score of Presidio, from 0 to 1."""

    names: Annotated[str | None, Parameter(group=PATTERNS)] = None
    """spaCy pipeline that finds names of people: an installed package, or a folder."""

    show_values: Annotated[bool, Parameter(group=PATTERNS, negative="")] = False
    """Write what was found into the results: personal data, secrets, and generated text. Without
    it they hold places only."""

    canaries: Annotated[Path | None, Parameter(group=CANARIES)] = None
    """File of `trainer audit canaries`, whose records were added to the corpus. They are ranked as
    the rows of the label set have them: of chats, in the chat."""

    candidates: Annotated[int, Parameter(group=CANARIES)] = 1000
    """Candidates to rank each canary among, at least; drawn anew, never inserted."""

    seed: int = 0
    """Seed of all draws."""

    dtype: Literal["fp32", "bf16"] = "fp32"
    """dtype that the models run in."""

    json: Annotated[bool, Parameter(negative="")] = False
    """Print the results as JSON on stdout."""

    vocab_map: bool = False
    """Audit models whose tokenizer shares almost all tokens with the teacher's, on the prefixes
    that they can read (see `trainer train --help`)."""

    allow_partial: bool = False
    """Audit on a label set that is still being labeled."""

    def __post_init__(self) -> None:
        for name in ("rows", "prefix", "continuation", "ngram", "candidates"):
            _require(name, getattr(self, name), 1)
        _require("scan_rows", self.scan_rows, 0)
        if not 0 <= self.pii_score <= 1:
            raise SoftshardsError(f"--pii-score is {self.pii_score}: it must be from 0 to 1")
        if self.ngram > self.continuation:
            raise SoftshardsError(
                f"--ngram {self.ngram} is longer than --continuation {self.continuation}"
            )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CanariesConfig:
    """The settings of `trainer audit canaries`."""

    out: Path
    """JSON lines file to write: one record for each time that a canary is inserted."""

    count: int = 10
    """Canaries."""

    repeat: int = 1
    """Records of each canary."""

    text: str = "The random number is {}."
    """Text of a record; {} stands for the digits."""

    question: str | None = None
    """Write chats instead of documents: this is the user's turn, --text the answer to it."""

    digits: int = 9
    """Digits of a canary."""

    seed: int = 0
    """Seed of the digits."""

    def __post_init__(self) -> None:
        for name in ("count", "repeat"):
            _require(name, getattr(self, name), 1)
        if not FEWEST_DIGITS <= self.digits <= MOST_DIGITS:
            raise SoftshardsError(
                f"--digits is {self.digits}: it must be from {FEWEST_DIGITS} to {MOST_DIGITS}"
            )
        if self.question is not None and not self.question.strip():
            raise SoftshardsError("--question is empty")
        before, _, after = self.text.partition("{}")
        if not before.strip() or "{}" in after or self.text.count("{}") != 1:
            raise SoftshardsError(
                f"--text {self.text!r} must hold {{}} once, after some words",
                hint='give a sentence such as "The random number is {}."',
            )


def _require(name: str, value: int, least: int) -> None:
    if value < least:
        flag = "--" + name.replace("_", "-")
        raise SoftshardsError(f"{flag} is {value}: it must be at least {least}")
