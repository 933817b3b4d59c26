"""The start of a run: a new set, a set to resume, or a set that rows are appended to."""

from __future__ import annotations

from labeler.console import err
from labeler.labeling.inputs.find_inputs import Input
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.planning.engine_memory import step_tokens
from labeler.labeling.runs.append import append, is_recorded, known_rows
from labeler.labeling.runs.new_set import SPOOL, new_set, require_room_for
from labeler.labeling.runs.plan_input import plan_input, report_rejects, require_parents
from labeler.labeling.runs.plan_settings import (
    pin_template_time,
    plan_settings,
    require_same_codec,
    require_same_plan,
    require_same_teacher,
)
from labeler.labeling.runs.replan import adopt_settings, is_plan_lost, write_lost_plan
from labeler.labeling.teacher.teacher import Teacher
from schemas import Identity, Manifest, SoftshardsError
from schemas.manifest import MANIFEST, read_manifest
from schemas.plan import remove_other_plans


def begin(
    files: list[Input], config: LabelConfig, teacher: Teacher, identity: Identity
) -> Manifest:
    """Return the manifest of a new set, of a set to resume, or of a set with appended rows.

    Only one process at a time may call this on a folder.

    Raises:
        SoftshardsError: the set was made with other settings, or the input cannot be planned.
    """
    settings = plan_settings(files, config)
    if not (config.folder / MANIFEST).exists():
        if config.append:
            raise SoftshardsError(
                "there is no label set to append to", path=config.folder, hint="leave out --append"
            )
        teacher, identity = pin_template_time(teacher, identity, None)
        return new_set(files, config, teacher, identity, settings)
    manifest = read_manifest(config.folder)
    teacher, identity = pin_template_time(teacher, identity, manifest)
    if manifest.plan is None:
        raise SoftshardsError(
            "this label set was derived from others, so it has nothing left to label",
            path=config.folder,
            hint="label into the set it was made from (--append), or into a new folder",
        )
    remove_other_plans(config.folder, manifest.plan.path)
    require_same_teacher(identity, manifest, config.folder)
    if "plan" not in manifest.provenance:
        own = settings | ({"inputs": {}, "limit": None} if config.append else {})
        step = step_tokens(config, identity.vocab_size)
        manifest = adopt_settings(own, step, manifest, config.folder)
    recorded = is_recorded(settings, manifest)
    adds = config.append and not recorded
    require_same_codec(config.codec, manifest, config.folder)
    require_same_plan(settings, manifest, config.folder, ignore_input=adds or recorded)
    spool, k = config.folder / SPOOL, identity.width
    if is_plan_lost(config.folder, manifest):
        with plan_input(files, config, teacher, spool, k=k) as planned:
            write_lost_plan(planned, config.folder, manifest)
    if adds:
        parents = require_parents(files, identity.tokenizer)
        known = known_rows(config.folder, manifest)
        with plan_input(files, config, teacher, spool, k=k, known=known) as planned:
            if planned.templated:
                require_same_teacher(identity, manifest, config.folder, templated=True)
            require_room_for(planned, config, manifest.identity, teacher.width)
            err.print(
                f"appending {planned.rows} rows in {planned.units} units to the "
                f"{manifest.planned_units} of {config.out}; {planned.known} rows are in it already"
            )
            manifest = append(planned, manifest, config.folder, settings, parents)
        report_rejects(planned.rejects, config.out)
    return _with_step(manifest, config, identity.vocab_size)


def _with_step(manifest: Manifest, config: LabelConfig, vocab_size: int) -> Manifest:
    """Return the manifest with this call's step: the recorded one, unless a flag sets another."""
    if config.max_batched_tokens is None and "max_batched_tokens" in manifest.provenance:
        return manifest
    step = {"max_batched_tokens": step_tokens(config, vocab_size)}
    return manifest.model_copy(update={"provenance": manifest.provenance | step})
