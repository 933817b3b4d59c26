"""The start of a run: plan new work, or prove that what is on disk is the run to go on with."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

from labeler.budget import Budget, estimate, require_space
from labeler.config import LabelConfig
from labeler.console import err
from labeler.planning import Planned, plan_units
from labeler.rendering import render
from labeler.sources import SourceFile, file_digests, read_records
from labeler.teacher import Teacher, copy_tokenizer
from schemas import Identity, Manifest, SoftshardsError, __version__
from schemas.journal import JOURNAL, PLAN_REJECTS, write_rejects
from schemas.manifest import MANIFEST, read_manifest, require_same_identity, write_manifest
from schemas.plan import write_plan


def begin(
    files: list[SourceFile], config: LabelConfig, teacher: Teacher, identity: Identity
) -> Manifest:
    """The manifest of a new run, or of the run to go on with."""
    settings = _plan_settings(files, config)
    if (config.out / MANIFEST).exists():
        manifest = read_manifest(config.out)
        mend = "label into another folder, or give the settings that the set was made with"
        require_same_identity(identity, manifest.identity, path=config.out, mend=mend)
        _require_same_plan(settings, manifest.provenance["plan"], config.out)
        return manifest
    planned = plan(files, config, teacher)
    require_space(budget(planned, config, identity), config.out)
    rejects = [vars(reject) for reject in planned.rejects]
    write_rejects(config.out / JOURNAL / PLAN_REJECTS, rejects)
    if rejects:
        err.print(f"{len(rejects)} records rejected: see `labeler inspect {config.out} --rejects`")
    manifest = Manifest(
        status="running",
        identity=identity,
        identity_digest=identity.digest,
        plan=write_plan(config.out, planned.units),
        planned_units=len(planned.units),
        tokenizer_files=copy_tokenizer(teacher, config.out),
        provenance={
            "softshards": __version__,
            "teacher": str(teacher.path),
            "plan": settings,
            "planned_rows": planned.rows,
            "planned_tokens": planned.total("n_tokens"),
            "planned_labels": planned.total("n_labels"),
            "plan_rejects": len(planned.rejects),
        },
    )
    write_manifest(config.out, manifest)
    return manifest


def _plan_settings(files: list[SourceFile], config: LabelConfig) -> dict[str, Any]:
    """What, beside identity, must not change between the calls of one run."""
    columns = ("text_column", "prompt_column", "completion_column", "messages_column", "id_column")
    names = (*columns, "engine", "deterministic", "seed", "unit_labels", "row_group_labels")
    return {name: getattr(config, name) for name in names} | {"inputs": file_digests(files)}


def _require_same_plan(asked: dict[str, Any], found: dict[str, Any], out: Path) -> None:
    different = [name for name in asked if asked[name] != found.get(name)]
    if different:
        lines = "".join(f"\n  {n}: here {found.get(n)!r}, asked {asked[n]!r}" for n in different)
        raise SoftshardsError(
            f"the label set was begun with another input or plan:{lines}",
            path=out,
            mend="label into another folder, or give the input and settings it was begun with",
        )


def plan(files: list[SourceFile], config: LabelConfig, teacher: Teacher) -> Planned:
    """Read and render the input, and cut it into units.

    Raises:
        SoftshardsError: a file cannot be read, nothing is left to label, or too much is rejected.
    """
    records = chain.from_iterable(read_records(file) for file in files)
    with err.status("reading and tokenising the input"):
        planned = plan_units(
            render(records, teacher, config),
            seed=config.seed,
            unit_labels=config.unit_labels,
            strict=config.strict,
            inputs=", ".join(file.name for file in files[:3]) + (", ..." if files[3:] else ""),
        )
    if planned.reject_share > config.max_reject_share:
        first = planned.rejects[0]
        raise SoftshardsError(
            f"{len(planned.rejects)} records of the input are bad ({planned.reject_share:.0%}, "
            f"more than --max-reject-share); the first: {first.reason}",
            path=first.source,
            row=first.id,
            mend="check the input and the column flags, or raise --max-reject-share",
        )
    return planned


def budget(planned: Planned, config: LabelConfig, identity: Identity) -> Budget:
    """What labeling this plan will take in bytes."""
    return estimate(config, identity, labels=planned.total("n_labels"))
