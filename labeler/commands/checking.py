"""Commands that check and repair label sets: `verify`, `repair`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def _not_negative(kind: object, value: int | str) -> None:
    del kind
    if isinstance(value, int) and value < 0:
        raise ValueError("it must be 0 or more, or `all`")


def verify(
    labels: Path,
    *,
    rescore: Annotated[int | Literal["all"], Parameter(validator=_not_negative)] = 0,
    model: Path | None = None,
    tolerance: float = 1e-3,
    seed: int = 0,
    allow_partial: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Check a label set: hashes, schema and invariants; with --rescore, the labels themselves.

    Names what is wrong: labels shifted against the tokens, a wrong tokenizer, chat template or
    teacher, another temperature, a lost tail. Exit code 0: good; 1: something is wrong.

    Example: `labeler verify ./labels --rescore 4 --model ./teacher`

    Parameters
    ----------
    labels
        Folder of the label set, or a view of one.
    rescore
        Rows to compute again with the transformers reference engine, or `all`: only that finds
        one wrong label.
    model
        Folder of the teacher; by default, for --rescore, the one the set was made with. Its
        weights, tokenizer and chat template are compared with the set's, too.
    tolerance
        Largest difference of a logprob that counts as equal, beside the rounding of storage.
        Raise it for teachers in bfloat16.
    seed
        Seed of the choice of rows.
    allow_partial
        Also check a set that is still being labeled.
    as_json
        Print JSON on standard output: problems and notes, each with kind, where, what and hint.
    """
    from labeler.labelsets.verify.verify import print_verification

    good = print_verification(
        labels,
        rescore=None if rescore == "all" else rescore,
        model=model,
        tolerance=tolerance,
        seed=seed,
        partial=allow_partial,
        as_machine=as_json,
    )
    if not good:
        sys.exit(1)


def repair(
    labels: Path,
    *,
    model: Path | None = None,
    dry_run: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Rebuild what is damaged in a label set from what is good, and list the units to redo.

    Nothing is deleted: damaged files are moved into LABELS/quarantine. Manifest, index, journal,
    plan and tokenizer are rebuilt where something vouches for them; the same `labeler label`
    command then labels the units that are lost, and those alone. Exit code 0: the set is whole;
    1: something is left to do.

    Example: `labeler repair ./labels --dry-run`, then `labeler repair ./labels`

    Parameters
    ----------
    labels
        Folder of the label set.
    model
        Folder of the teacher, to copy tokenizer files from; by default the one the set names.
    dry_run
        Say what would be done; change nothing.
    as_json
        Print JSON on standard output: moved, rebuilt, redo and left.
    """
    from labeler.labelsets.repair.repair import print_repair

    if not print_repair(labels, model=model, dry_run=dry_run, as_json=as_json):
        sys.exit(1)
