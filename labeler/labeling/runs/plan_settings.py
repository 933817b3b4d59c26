"""The settings that a set's plan records, and that later calls must repeat."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from labeler.labeling.inputs.find_inputs import Input
from labeler.labeling.inputs.input_identity import input_digests
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.label_settings import recorded_settings
from labeler.labeling.teacher.teacher import Teacher
from labeler.labeling.teacher.template_clock import TemplateClock, new_clock
from schemas import Identity, Manifest, SoftshardsError
from schemas.manifest import differences, require_same_identity
from schemas.version import CODECS


def plan_settings(files: list[Input], config: LabelConfig) -> dict[str, object]:
    """Return the settings that, beside the identity, must not change between calls of one run."""
    return recorded_settings(config, "plan") | {"inputs": input_digests(files)}


def pin_template_time(
    teacher: Teacher, identity: Identity, manifest: Manifest | None
) -> tuple[Teacher, Identity]:
    """Pin the time that a chat template prints: to this moment, or to the one of an older set.

    A set that was made without one prints the time of each call, as it always did.

    Args:
        teacher: the teacher.
        identity: of this call.
        manifest: of the set, if there is one.

    Returns:
        Both with the time, if the template may print it.
    """
    if "strftime_now" not in str(teacher.chat_template):
        return teacher, identity
    clock = new_clock() if manifest is None else None
    if manifest is not None and manifest.identity.template_time:
        clock = TemplateClock(manifest.identity.template_time)
    moment = clock and clock.moment
    pinned = identity.model_copy(update={"template_time": moment})
    return dataclasses.replace(teacher, clock=clock), pinned


def require_same_teacher(
    identity: Identity, manifest: Manifest, out: Path, *, templated: bool = False
) -> None:
    """Refuse labels of another identity than the set's.

    Args:
        identity: of this call.
        manifest: of the set in `out`.
        out: the set's folder.
        templated: compare the chat template although the set has none: new rows use it.

    Raises:
        SoftshardsError: a field differs.
    """
    if manifest.identity.chat_template is None and not templated:
        identity = identity.model_copy(update={"chat_template": None})
    ours, theirs = (i.states and i.states.partition(" ")[0] for i in (identity, manifest.identity))
    if ours == theirs:  # the codec was chosen when the set was planned
        identity = identity.model_copy(update={"states": manifest.identity.states})
    hint = "label into another folder, or pass the settings that the set was made with"
    require_same_identity(identity, manifest.identity, path=out, hint=hint)


def require_same_codec(codec: str, manifest: Manifest, out: Path) -> None:
    """Refuse another `--codec` than the set's.

    Raises:
        SoftshardsError: it differs.
    """
    if manifest.codec != CODECS[codec]:
        raise SoftshardsError(
            f"the label set has codec {manifest.codec}, --codec asks for {CODECS[codec]}",
            path=out,
            hint=f"pass --codec {manifest.codec.split('/')[0]}; `labeler convert` recodes a set",
        )


def require_same_plan(
    settings: dict[str, object], manifest: Manifest, out: Path, *, ignore_input: bool
) -> None:
    """Refuse other plan settings than the set's.

    Args:
        settings: `plan_settings` of this call.
        manifest: of the set in `out`.
        out: the set's folder.
        ignore_input: compare neither inputs nor --limit.

    Raises:
        SoftshardsError: a setting differs.
    """
    found: dict[str, object] = manifest.provenance["plan"]
    asked = settings
    if ignore_input:
        found, asked = ({**s, "inputs": None, "limit": None} for s in (found, asked))
    if lines := differences(found=found, asked=asked):
        raise SoftshardsError(
            f"the label set was started with a different input or plan:{lines}",
            path=out,
            hint="label into another folder, or pass the original input and settings"
            " (--append adds the records of another input)",
        )
