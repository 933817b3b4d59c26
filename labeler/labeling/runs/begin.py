"""The start of a run: plan new work, or prove that what is on disk is the run to go on with."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from labeler.console import counting, err
from labeler.labeling.inputs.read_records import (
    SourceFile,
    file_digests,
    parent_sets,
    read_records,
)
from labeler.labeling.label_config import CODECS, LabelConfig
from labeler.labeling.planning.budget import (
    DEFAULT_BATCHED_TOKENS,
    Budget,
    bound_batched_tokens,
    estimate,
    labels_a_unit,
    require_space,
)
from labeler.labeling.planning.cut import Planned, Rules, plan_units
from labeler.labeling.planning.plan_spool import spool
from labeler.labeling.rendering.render import Sequence, render
from labeler.labeling.runs.append import append, is_recorded, known_rows
from labeler.labeling.runs.replan import adopt, is_lost, plan_again
from labeler.labeling.teacher.teacher import Teacher, copy_tokenizer, template_arguments
from schemas import Identity, Manifest, SoftshardsError, __version__
from schemas.atomic import TMP_PREFIX
from schemas.journal import plan_rejects_path, write_rejects
from schemas.manifest import (
    MANIFEST,
    differences,
    read_manifest,
    require_same_identity,
    write_manifest,
)
from schemas.plan import PLAN, remove_other_plans, write_plan

SPOOL = f"{TMP_PREFIX}plan.sqlite"
SETTINGS = (
    *("text_column", "prompt_column", "completion_column", "messages_column", "id_column"),
    *("engine", "deterministic", "seed", "unit_labels", "row_group_labels"),
)
LATE_SETTINGS = (
    *("tools_column", "documents_column", "ids_column", "spans_column"),
    *("student_messages_column", "student_prompt_column", "limit"),
)
"""Recorded where they are not the default, so that older sets can be gone on with."""


def begin(
    files: list[SourceFile], config: LabelConfig, teacher: Teacher, identity: Identity
) -> Manifest:
    """The manifest of a new run, of the run to go on with, or of a set that rows were added to.

    Only one process at a time may be in here.

    Raises:
        SoftshardsError: the set was made otherwise, or the input cannot be planned.
    """
    settings = _settings(files, config)
    if not (config.out / MANIFEST).exists():
        if config.append:
            raise SoftshardsError(
                "there is no label set to append to", path=config.out, hint="leave out --append"
            )
        return _new(files, config, teacher, identity, settings)
    manifest = read_manifest(config.out)
    if manifest.plan is None:
        raise SoftshardsError(
            "this label set was derived from others: there is nothing left to label in it",
            path=config.out,
            hint="label into the set it was made from (--append), or into a new folder",
        )
    remove_other_plans(config.out, manifest.plan.path)
    _require_same(identity, manifest, config.out)
    if "plan" not in manifest.provenance:
        own = settings | ({"inputs": {}, "limit": None} if config.append else {})
        manifest = adopt(own, _step(config, identity), manifest, config.out)
    recorded = is_recorded(settings, manifest)
    adds = config.append and not recorded
    _require_same_codec(config, manifest)
    _require_same_plan(settings, manifest, config.out, but_input=adds or recorded)
    if is_lost(config.out, manifest):
        with planning(files, config, teacher, config.out / SPOOL) as planned:
            plan_again(planned, config.out, manifest)
    if adds:
        parents = _parents(files, identity)
        known = known_rows(config.out, manifest)
        with planning(files, config, teacher, config.out / SPOOL, known=known) as planned:
            if planned.templated:
                _require_same(identity, manifest, config.out, templated=True)
            require_space(budget(planned, config, identity), config.out)
            manifest = append(planned, manifest, config.out, settings, parents)
        _say_rejects(planned, config.out)
    return _with_step(manifest, config, identity)


def _new(
    files: list[SourceFile],
    config: LabelConfig,
    teacher: Teacher,
    identity: Identity,
    settings: dict[str, Any],
) -> Manifest:
    parents = _parents(files, identity)
    with planning(files, config, teacher, config.out / SPOOL) as planned:
        if not planned.templated:
            identity = identity.model_copy(update={"chat_template": None})
        require_space(budget(planned, config, identity), config.out)
        rejects = map(vars, planned.all_rejects())
        write_rejects(plan_rejects_path(config.out, PLAN), rejects)
        plan = write_plan(config.out, planned.tables())
    _say_rejects(planned, config.out)
    manifest = Manifest(
        codec=CODECS[config.codec],
        status="running",
        identity=identity,
        identity_digest=identity.digest,
        plan=plan,
        planned_units=planned.units,
        tokenizer_files=copy_tokenizer(teacher, config.out),
        provenance={
            "softshards": __version__,
            "teacher": str(teacher.path),
            "plan": settings,
            "planned_rows": planned.rows,
            "planned_tokens": planned.n_tokens,
            "planned_labels": planned.n_labels,
            "plan_rejects": planned.rejects,
            "max_batched_tokens": _step(config, identity),
        }
        | ({"parents": parents} if parents else {})
        | _template(config, teacher, identity),
    )
    write_manifest(config.out, manifest)
    return manifest


def _template(config: LabelConfig, teacher: Teacher, identity: Identity) -> dict[str, Any]:
    """What of the chat template cannot be had from the tokenizer, for rows to be rendered again."""
    arguments, given = template_arguments(config), config.chat_template is not None
    if identity.chat_template is None or not (arguments or given):
        return {}
    text = teacher.chat_template if given else None
    return {"chat_template": {"text": text, "arguments": arguments}}


def _settings(files: list[SourceFile], config: LabelConfig) -> dict[str, Any]:
    """What, beside identity, must not change between the calls of one run."""
    default = {field.name: field.default for field in dataclasses.fields(LabelConfig)}
    late = {n: v for n in LATE_SETTINGS if (v := getattr(config, n)) != default[n]}
    always = {name: getattr(config, name) for name in SETTINGS}
    return always | late | {"inputs": file_digests(files)}


def _require_same(
    identity: Identity, manifest: Manifest, out: Path, *, templated: bool = False
) -> None:
    """Refuse other settings. A template that no row went through is none, here as there."""
    if manifest.identity.chat_template is None and not templated:
        identity = identity.model_copy(update={"chat_template": None})
    hint = "label into another folder, or give the settings that the set was made with"
    require_same_identity(identity, manifest.identity, path=out, hint=hint)


def _require_same_plan(
    asked: dict[str, Any], manifest: Manifest, out: Path, *, but_input: bool
) -> None:
    found = manifest.provenance["plan"]
    if but_input:
        found, asked = ({**s, "inputs": None, "limit": None} for s in (found, asked))
    if lines := differences(found=found, asked=asked):
        raise SoftshardsError(
            f"the label set was begun with another input or plan:{lines}",
            path=out,
            hint="label into another folder, or give the input and settings it was begun with"
            " (--append adds the records of another input)",
        )


def _require_same_codec(config: LabelConfig, manifest: Manifest) -> None:
    if manifest.codec != CODECS[config.codec]:
        raise SoftshardsError(
            f"the label set is in codec {manifest.codec}, asked {CODECS[config.codec]}",
            path=config.out,
            hint=f"pass --codec {manifest.codec.split('/')[0]}; `labeler convert` recodes a set",
        )


def _parents(files: list[SourceFile], identity: Identity) -> list[dict[str, Any]]:
    """Facts of the label sets among the inputs; their token ids must mean the same here."""
    parents = parent_sets(files)
    for parent in parents:
        if parent["tokenizer"] != identity.tokenizer:
            raise SoftshardsError(
                "the label set was made with another tokenizer, so its token ids are not the "
                "teacher's",
                path=parent["name"],
                hint="choose a teacher with the tokenizer of that set",
            )
    return parents


def _say_rejects(planned: Planned, out: Path) -> None:
    if planned.rejects:
        err.print(f"{planned.rejects} records rejected: see `labeler inspect {out} --rejects`")


def _step(config: LabelConfig, identity: Identity) -> int:
    """Tokens an engine step: recorded, for other steps may round otherwise."""
    if config.engine == "vllm":
        return bound_batched_tokens(config, identity)
    return config.max_batched_tokens or DEFAULT_BATCHED_TOKENS


def _with_step(manifest: Manifest, config: LabelConfig, identity: Identity) -> Manifest:
    """The manifest with the step that this call is to use: that of the first, if none is asked."""
    if config.max_batched_tokens is None and "max_batched_tokens" in manifest.provenance:
        return manifest
    step = {"max_batched_tokens": _step(config, identity)}
    return manifest.model_copy(update={"provenance": manifest.provenance | step})


@contextlib.contextmanager
def planning(
    files: list[SourceFile],
    config: LabelConfig,
    teacher: Teacher,
    path: Path,
    *,
    known: Iterable[Sequence] = (),
) -> Iterator[Planned]:
    """Read and render the input, and cut it into units; what was read is in a file at `path`.

    Raises:
        SoftshardsError: a file cannot be read, nothing is left to label, or too much is rejected.
    """
    rules = Rules(
        seed=config.seed,
        unit_labels=labels_a_unit(config, teacher.vocab_size),
        strict=config.strict,
        max_reject_share=config.max_reject_share,
    )
    records = islice(chain.from_iterable(map(read_records, files)), config.limit)
    with spool(path) as rows:
        with counting("records", "planning", total=config.limit) as counted:
            planned = plan_units(
                render(counted(records), teacher, config),
                rules,
                rows,
                known=known,
                inputs=", ".join(file.name for file in files[:3]) + (", ..." if files[3:] else ""),
            )
        yield planned


def budget(planned: Planned, config: LabelConfig, identity: Identity) -> Budget:
    """What labeling this plan will take in bytes."""
    return estimate(config, identity, labels=planned.n_labels)
