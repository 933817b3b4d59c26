"""A new label set: its plan and its manifest."""

from __future__ import annotations

from pathlib import Path

from labeler.console import err
from labeler.labeling.inputs.find_inputs import Input
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.planning.budget import (
    STATES_SAMPLE,
    estimate_bytes,
    estimate_state_bytes,
    most_labels,
    require_space,
    with_states_codec,
)
from labeler.labeling.planning.cut import Planned
from labeler.labeling.planning.engine_memory import step_tokens
from labeler.labeling.runs.plan_input import plan_input, report_rejects, require_parents
from labeler.labeling.teacher.checkpoint_facts import ChatTemplate
from labeler.labeling.teacher.locate_teacher import source_provenance
from labeler.labeling.teacher.teacher import Teacher
from labeler.labeling.teacher.tokenizer_files import copy_tokenizer
from schemas import Identity, Manifest, __version__
from schemas.atomic import TMP_PREFIX
from schemas.hub_model import ModelSource
from schemas.journal import plan_rejects_path, write_rejects
from schemas.manifest import write_manifest
from schemas.plan import PLAN, write_plan
from schemas.urls import is_url
from schemas.version import CODECS

SPOOL = f"{TMP_PREFIX}plan.sqlite"


def new_set(
    files: list[Input],
    config: LabelConfig,
    teacher: Teacher,
    identity: Identity,
    settings: dict[str, object],
) -> Manifest:
    """Plan the input and write the plan, the tokenizer and the manifest.

    Args:
        files: the input.
        config: all settings.
        teacher: the teacher.
        identity: of the labels; its chat template is dropped if no row used it.
        settings: the plan settings to record.

    Raises:
        SoftshardsError: the input cannot be planned, or the labels would not fit on the disk.
    """
    batched_tokens = step_tokens(config, identity.vocab_size)
    parents = require_parents(files, identity.tokenizer)
    with plan_input(files, config, teacher, config.folder / SPOOL, k=identity.width) as planned:
        if not planned.templated:
            identity = identity.model_copy(update={"chat_template": None})
        if teacher.clock is None or not teacher.clock.used:
            identity = identity.model_copy(update={"template_time": None})
        asked = identity.states
        labels = most_labels(planned, identity.keep_positions, config.samples_per_row)
        identity = with_states_codec(identity, labels, teacher.width)
        if identity.states != asked:
            err.print(
                f"{labels:,} labels are too few for the codec of hidden states, which "
                f"needs {STATES_SAMPLE * (teacher.width or 0):,}: they are stored as float16"
            )
        require_room_for(planned, config, identity, teacher.width)
        rejects = map(vars, planned.all_rejects())
        write_rejects(plan_rejects_path(config.folder, PLAN), rejects)
        plan = write_plan(config.folder, planned.tables())
    report_rejects(planned.rejects, config.out)
    manifest = Manifest(
        codec=CODECS[config.codec],
        status="running",
        identity=identity,
        identity_digest=identity.digest,
        plan=plan,
        planned_units=planned.units,
        tokenizer_files=copy_tokenizer(teacher.path, config.folder),
        provenance={
            "softshards": __version__,
            **source_provenance(teacher.source or ModelSource(folder=teacher.path)),
            "plan": settings,
            "planned_rows": planned.rows,
            "planned_tokens": planned.n_tokens,
            "planned_labels": planned.n_labels,
            "plan_rejects": planned.rejects,
            "max_batched_tokens": batched_tokens,
        }
        | ({"trust_remote_code": True} if teacher.trust_code else {})
        | ({"parents": parents} if parents else {})
        | _template_provenance(
            identity, teacher.chat_template, config.chat_template, config.template_arguments
        ),
    )
    version = {"format_version": manifest.written_version}
    manifest = manifest.model_copy(update=version)
    write_manifest(config.folder, manifest)
    return manifest


def require_room_for(
    planned: Planned, config: LabelConfig, identity: Identity, width: int | None
) -> None:
    """Refuse a plan whose labels cannot fit on the disk; an object store has room.

    Raises:
        SoftshardsError: the estimate is more than the free space.
    """
    if is_url(config.out):
        return
    labels = most_labels(planned, identity.keep_positions, config.samples_per_row)
    needed = estimate_bytes(labels, k=identity.width, draws=config.draws, codec=config.codec)
    needed += estimate_state_bytes(labels, identity, kl=config.state_kl, width=width)
    require_space(needed, config.folder)


def _template_provenance(
    identity: Identity,
    template: ChatTemplate | None,
    given: Path | None,
    arguments: dict[str, object],
) -> dict[str, object]:
    """Return the parts of the chat template that the tokenizer lacks, to render rows again."""
    if identity.chat_template is None or not (arguments or given is not None):
        return {}
    text = template if given is not None else None
    return {"chat_template": {"text": text, "arguments": arguments}}
