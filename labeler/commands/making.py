"""Commands that make label sets and views of label sets: `convert`, `curate`, `merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from labeler.labelsets.curate.curate_config import CurateConfig


def convert(
    labels: Path,
    out: Path,
    *,
    codec: Literal["plain", "compact"] = "compact",
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Write a label set, or the rows of a view, in another codec; prove each row as it goes.

    The identity stays the same, and so does all that a trainer sees, but for the rounding that
    docs/format.md allows. The source is not touched. Can be stopped and run again.

    Example: `labeler convert ./labels ./labels-compact --codec compact`

    Parameters
    ----------
    labels
        Folder of a complete label set, or a view of one.
    out
        Folder of the new set.
    codec
        plain: any Parquet reader reads it. compact: about 60 % of the bytes.
    as_json
        Print JSON on standard output.
    """
    from labeler.labelsets.derive.convert import print_conversion

    print_conversion(labels, out, codec, as_json=as_json)


def curate(
    labels: Path,
    *,
    settings: CurateConfig,
    dry_run: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Choose rows of a label set by rules; write a view of them, and say what was removed and why.

    A view is a small file that every command and the trainer take in place of the set. Rules are
    applied in the order of this help, whatever the order of the flags.

    Example: `labeler curate ./labels --out good.view.json --where "mean_nll < 4" --dedup near`

    Parameters
    ----------
    labels
        Folder of a label set, or a view of one.
    dry_run
        Report, and write nothing.
    as_json
        Print the report as JSON on standard output.
    """
    from labeler.labelsets.curate.curate import print_curation

    print_curation(labels, settings, dry_run=dry_run, as_json=as_json)


def merge(
    sets: list[Path],
    *,
    codec: Literal["plain", "compact"] | None = None,
    on_duplicate: Literal["refuse", "first"] = "refuse",
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Make one label set of several of the same teacher, labeled in the same way.

    Shards stay shards, and every row is compared with its source. The sources are not touched. Can
    be stopped and run again.

    Example: `labeler merge ./labels-a ./labels-b ./labels`

    Parameters
    ----------
    sets
        Folders of two or more complete label sets, or views; last, the folder of the new set.
    codec
        Codec of the new set; by default that of the first.
    on_duplicate
        Where a row's id, chunk and sample occur in several sets. refuse: say which, and stop.
        first: take the row of the set that is named first.
    as_json
        Print JSON on standard output.
    """
    from labeler.labelsets.derive.merge import print_merge

    print_merge(sets[:-1], sets[-1], codec=codec, on_duplicate=on_duplicate, as_json=as_json)
