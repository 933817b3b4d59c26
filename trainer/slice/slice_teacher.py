"""Make a student from some of the teacher's layers and feed-forward neurons, unless it is there."""

from __future__ import annotations

from dataclasses import replace

from schemas import SoftshardsError, open_label_set
from schemas.hub_model import locate_model
from trainer.console import message_console
from trainer.slice.slice_config import SliceConfig
from trainer.slice.slice_result import SLICE, SliceResult, asked_settings


def slice_teacher(config: SliceConfig) -> int:
    """Write a student with some of the teacher's layers; return the exit code.

    Raises:
        SoftshardsError: the teacher's layers cannot be removed, or OUT holds another slice.
    """
    console = message_console()
    labels = open_label_set(config.labels, allow_partial=config.allow_partial)
    source = locate_model(
        config.teacher,
        say=lambda line: console.print(line),
        revision=config.revision,
    )
    config = replace(config, teacher=source.folder, revision=None)
    asked = asked_settings(config, labels)
    if (config.out / SLICE).is_file():
        found = SliceResult.read(config.out / SLICE, "the result of `trainer slice`")
        if found.asked != asked:
            raise SoftshardsError(
                "the student here has other layers or neurons, or was measured on other labels",
                path=config.out,
                hint="give another --out, or delete the folder",
            )
        console.print(f"reused {config.out}: layers {found.layers}")
        return 0
    from trainer.slice.write_slice import write_slice  # imports torch

    write_slice(config, labels, source, asked)
    return 0
