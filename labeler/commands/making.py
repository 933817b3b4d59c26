"""Commands that make label sets and views from label sets: `convert`, `curate`, `merge`."""

from __future__ import annotations

from labeler.labelsets.curate.curate_config import CurateConfig
from labeler.labelsets.derive.derive_config import ConvertConfig, MergeConfig


def convert(config: ConvertConfig) -> int:
    """Write a label set, or the rows of a view, in another codec, and compare every row.

    The identity stays the same, and so does everything that a trainer reads, except for the
    rounding that docs/format.md allows. The source is not touched. Can be stopped and run again.

    Example: `labeler convert ./labels ./labels-compact --codec compact`
    """
    from labeler.labelsets.derive.convert import run_convert

    return run_convert(config)


def curate(config: CurateConfig) -> int:
    """Select rows of a label set by rules, write a view of them, and report what was removed.

    A view is a small file that every command and the trainer accept in place of the set. Rules are
    applied in the order of this help, whatever the order of the flags.

    Example: `labeler curate ./labels --out good.view.json --where "mean_nll < 4" --dedup near`
    """
    from labeler.labelsets.curate.curate import run_curate

    return run_curate(config)


def merge(config: MergeConfig) -> int:
    """Make one label set from several that the same teacher labeled in the same way.

    Shards stay shards, and every row is compared with its source. The sources are not touched. Can
    be stopped and run again.

    Example: `labeler merge ./labels-a ./labels-b ./labels`
    """
    from labeler.labelsets.derive.merge import run_merge

    return run_merge(config)
