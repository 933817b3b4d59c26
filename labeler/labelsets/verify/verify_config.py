"""Settings of `labeler verify`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from labeler.labeling.label_settings import SetLocation


def _require_count(kind: object, value: int | str) -> None:
    del kind
    if isinstance(value, int) and value < 0:
        raise ValueError("it must be 0 or more, or `all`")


@Parameter(name="*")
@dataclass(frozen=True)
class VerifyConfig:
    """The label sets to check, and the depth of the check."""

    labels: tuple[SetLocation, ...]
    """Folders or URLs of label sets, or views of some. Behind a URL, every byte is read from the
    store: what is cached on this machine does not count."""

    _: KW_ONLY

    rescore: Annotated[int | Literal["all"], Parameter(validator=_require_count)] = 0
    """Rows to compute again with the transformers reference engine, or `all`. Only `all` finds a
    single wrong label."""

    model: Path | None = None
    """Folder of the teacher, or its OWNER/NAME on the Hub; by default, for --rescore, the one that
    made the set. Its weights, tokenizer and chat template are compared with the set's, too."""

    revision: str | None = None
    """Branch, tag or commit of a --model on the Hub; by default the set's."""

    tolerance: float = 1e-3
    """Largest difference of a logprob that counts as equal, in nats, on top of the rounding of
    storage. Raise it for teachers in bfloat16."""

    seed: int = 0
    """Seed for the choice of rows."""

    allow_partial: bool = False
    """Also check a set that is still being labeled."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print one line of JSON per label set on standard output: its problems and notes, each with
    kind, where, what and hint."""
