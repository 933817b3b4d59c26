"""Settings of `trainer evaluate`. Attribute docstrings are its help text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The settings of `trainer evaluate`."""

    labels: str | Path | None = None
    """Held-out label set to measure on: a folder, a view, or the URL of either. Only with --tasks
    or --answers may it be left out."""

    model: tuple[Path, ...] = ()
    """Model to measure: a checkpoint folder, or OWNER/NAME[@REVISION] on the Hub; repeat for
    more."""

    out: Path
    """JSON file for the results; models already in it are not measured again."""

    teacher: Path | None = None
    """Teacher's checkpoint (a folder, or OWNER/NAME[@REVISION] on the Hub), to count its parameters
    and bytes, and to run --tasks; otherwise it is not loaded."""

    pack_tokens: int | None = None
    """Tokens run at once; the default is 2048, or the length of the longest sequence if greater."""

    dtype: Literal["fp32", "bf16"] = "fp32"
    """dtype that the models run in (log-probabilities are in fp32 either way)."""

    by: tuple[str, ...] = ()
    """Show a table of groups, and the worst one: kind, source, length, or a column of the corpus
    such as meta.lang; repeat for more. OUT has kind, source and length always. A model that was
    measured without such a column is measured again."""

    top_k: int = 10
    """Length of the two lists of likeliest tokens that are compared (top-k overlap); at most as
    many as the labels store."""

    worst: int = 3
    """Sequences with the highest KL of which OUT keeps a passage, its KL per token, and the
    likeliest tokens of both models, for `trainer report`. OUT then holds text of the label set; 0
    keeps none."""

    json: Annotated[bool, Parameter(negative="")] = False
    """Print the results as JSON on stdout."""

    vocab_map: bool = False
    """Measure models whose tokenizer shares almost all tokens with the teacher's, over the rows
    that they can read (see `trainer train --help`). Use a separate --out for them."""

    allow_partial: bool = False
    """Measure on a label set that is still being labeled."""
