"""Planning: the input is read, rendered and cut into units."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from labeler.console import counting, err
from labeler.labeling.inputs.find_inputs import Input, InputSet
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
        SoftshardsError: a file cannot be read, nothing is left to label, too much is rejected, or
            the labels of an input were chosen in a way that new labels could not follow.
    """
    _check_kept_positions(files, config)
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


def _check_kept_positions(files: list[Input], config: LabelConfig) -> None:
    """Warn of label sets with some positions, whose spans are the ones that are labeled.

    Raises:
        SoftshardsError: the labels of one are a sample, whose weights the new set would lack; or
            --keep-positions would choose among chosen labels.
    """
    named = config.ids_column, config.spans_column
    if config.mode == "generate" or named != ("input_ids", "spans"):
        return  # the spans are not read
    if config.shape not in ("auto", "ids"):
        return
    for file in files:
        if not isinstance(file, InputSet):
            continue
        rule = file.labels.manifest.identity.keep_positions
        if rule is None:
            continue
        if file.labels.manifest.identity.has_weights:
            raise SoftshardsError(
                f"its labels are a sample (--keep-positions '{rule}'): the new set would have the "
                "same positions without their weights, so its losses would be biased",
                path=file.name,
                hint="give a set with all labels, with --keep-positions here",
            )
        if config.keep_positions is not None:
            raise SoftshardsError(
                f"--keep-positions '{config.keep_positions}' would choose among the labels that "
                f"'{rule}' kept, not among all of a row",
                path=file.name,
                hint="leave --keep-positions out, or give a set with all labels",
            )
        err.print(
            f"warning: {file.name}: only the positions that --keep-positions '{rule}' kept are "
            "labeled, by the entropy of that set's teacher"
        )


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
