"""Select rows of an opened label set, in memory and as a view on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeler.labelsets.common.rows import Mask
from schemas import LabelSet, LabelSetError
from schemas.row_group import Kept
from schemas.view import View, write_view


def select_rows(
    labels: LabelSet,
    mask: Mask,
    *,
    n_labels: NDArray[np.int64],
    n_tokens: NDArray[np.int64],
    made: dict[str, Any],
) -> LabelSet:
    """Return the rows of a set or view that a mask keeps, as a view of the set itself.

    Args:
        labels: the set or view.
        mask: bool [rows], rows to keep.
        n_labels: int64 [rows], labels per row.
        n_tokens: int64 [rows], tokens per row.
        made: how the view was made, for `View.made`.

    Raises:
        LabelSetError: the index contradicts the rows.
    """
    kept, first = [], 0
    for group in labels.row_groups:
        here = slice(first, first + group.rows)
        first += group.rows
        if mask[here].any():
            sizes = {"n_labels": n_labels[here], "n_tokens": n_tokens[here]}
            kept.append(Kept.of(group, mask[here], **sizes))
    view = View(
        label_set=labels.remote.url if labels.remote else str(labels.path.resolve()),
        identity_digest=labels.manifest.identity_digest,
        kept=tuple(kept),
        made=made,
    )
    try:
        groups = labels.row_groups.keep(kept)
    except ValueError as error:  # the index states other counts than the rows
        raise LabelSetError(f"the index is wrong: it {error}", path=labels.place) from error
    return replace(labels, row_groups=groups, view=view)


def save_view(place: Path | str, labels: LabelSet) -> None:
    """Write the view that `select_rows` made to a path or URL."""
    assert labels.view is not None, "made by select_rows"
    if isinstance(place, Path):
        place.parent.mkdir(parents=True, exist_ok=True)
    write_view(place, labels.view)
