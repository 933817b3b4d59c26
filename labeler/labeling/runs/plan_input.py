"""Planning: the input is read, rendered and cut into units."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from labeler.console import counting, err
from labeler.labeling.inputs.find_inputs import Input
from labeler.labeling.inputs.input_identity import parent_sets
from labeler.labeling.inputs.read_records import read_records
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.planning.budget import labels_per_unit
from labeler.labeling.planning.cut import Planned, Rules, plan_units
from labeler.labeling.planning.plan_spool import open_spool
from labeler.labeling.rendering.render import Sequence, render
from labeler.labeling.teacher.teacher import Teacher
from schemas import SoftshardsError


@contextlib.contextmanager
def plan_input(
    files: list[Input],
    config: LabelConfig,
    teacher: Teacher,
    spool: Path,
    *,
    k: int,
    known: Iterable[Sequence] = (),
) -> Iterator[Planned]:
    """Read and render the input, and cut it into units.

    Args:
        files: the input.
        config: how to render and to cut it.
        teacher: its tokenizer renders.
        spool: new file for the rendered rows; deleted at the end.
        k: ids stored per position.
        known: rows that the label set has already.

    Raises:
        SoftshardsError: a file cannot be read, nothing is left to label, or too much is rejected.
    """
    rules = Rules(
        seed=config.seed,
        unit_labels=labels_per_unit(
            config.unit_labels, k, len(config.state_layers) * (teacher.width or 0)
        ),
        strict=config.strict,
        max_reject_share=config.max_reject_share,
    )
    read = (read_records(file, config.ids_from) for file in files)
    records = islice(chain.from_iterable(read), config.limit)
    with open_spool(spool) as rows:
        with counting("records", "planning", total=config.limit) as counted:
            planned = plan_units(
                render(counted(records), teacher, config),
                rules,
                rows,
                known=known,
                inputs=", ".join(file.name for file in files[:3]) + (", ..." if files[3:] else ""),
            )
        yield planned


def require_parents(files: list[Input], tokenizer: str) -> list[dict[str, Any]]:
    """Return facts about the label sets among the inputs.

    Args:
        files: the input.
        tokenizer: digest of the teacher's tokenizer.

    Raises:
        SoftshardsError: a set has another tokenizer, so its token ids mean something else.
    """
    parents = parent_sets(files)
    for parent in parents:
        if parent["tokenizer"] != tokenizer:
            raise SoftshardsError(
                "the label set was made with another tokenizer, so its token ids are not the "
                "teacher's",
                path=parent["name"],
                hint="choose a teacher with the tokenizer of that set",
            )
    return parents


def report_rejects(count: int, out: Path | str) -> None:
    """Print the number of rejected records, if there are any."""
    if count:
        err.print(f"{count} records rejected: see `labeler inspect {out} --rejects`")
