"""`labeler inspect`: a summary, one row or the rejects. Only the summary imports Polars."""

from __future__ import annotations

from labeler.labelsets.inspect.inspect_config import InspectConfig
from schemas import open_label_set


def run_inspect(config: InspectConfig) -> int:
    """Print the rejects, one row or the summary of a label set, and return 0.

    Raises:
        LabelSetError: the set cannot be opened, a shard is altered, or the row is missing.
    """
    if config.rejects:
        from labeler.labelsets.inspect.inspect_report import print_rejects

        print_rejects(config.labels, as_json=config.as_json)
        return 0
    labels = open_label_set(config.labels, allow_partial=config.allow_partial)
    if config.row is None:
        from labeler.labelsets.inspect.inspect_report import print_summary

        print_summary(config.labels, labels, as_json=config.as_json)
        return 0
    from labeler.labelsets.inspect.row_view import print_row

    print_row(
        labels, config.row, start=config.start, count=config.positions, as_json=config.as_json
    )
    return 0
