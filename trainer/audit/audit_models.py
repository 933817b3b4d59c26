"""`trainer audit`: sample the training set, ask each model, and write rules for what was found."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from schemas import LabelSet, SoftshardsError, open_label_set
from schemas.errors import first_line
from schemas.fingerprint import sha256_file
from schemas.hub_model import ModelSource, locate_model
from trainer.audit.audit_config import AuditConfig
from trainer.audit.audit_results import (
    AuditedModel,
    AuditResults,
    AuditSettings,
    Role,
)
from trainer.audit.audit_table import print_audit
from trainer.audit.canary_file import CanaryRecord, read_canaries
from trainer.audit.canary_rows import CanaryRows
from trainer.audit.curate_rules import write_rules
from trainer.audit.patterns import Patterns
from trainer.audit.read_training import RowSample, TrainingRow, read_groups
from trainer.audit.training_text import TrainingText, scan_rows
from trainer.console import ProgressBar, message_console
from trainer.evaluate.results import HeldOutSet, model_digest
from trainer.evaluate.teacher_facts import is_the_teacher

Located = tuple[Role, ModelSource, str]
"""Role, place and digest of a model."""


def audit(config: AuditConfig) -> int:
    """Audit every model that OUT lacks, and print all; return the exit code.

    Raises:
        SoftshardsError: as `audit_models`.
    """
    results = audit_models(config)
    if config.json:
        sys.stdout.write(results.to_json())
    else:
        print_audit(results)
    return 0


def audit_models(config: AuditConfig) -> AuditResults:
    """Audit every model that OUT lacks; write OUT, after each of them, and the rules.

    Raises:
        SoftshardsError: OUT belongs to a different label set or to other settings, a model does not
            fit the label set, no row is long enough, or an extra is missing.
    """
    labels = open_label_set(config.labels, allow_partial=config.allow_partial)
    models = _locate(config, labels)
    canaries = read_canaries(config.canaries) if config.canaries is not None else []
    patterns = load_patterns(config) if config.scan_rows else []
    results = _open_results(config, labels, _settings(config, patterns))
    missing = []
    for role, source, digest in models:
        place = str(source)
        entry = results.lookup(digest, role=role, dtype=config.dtype)
        if entry is None:
            missing.append((role, source, digest))
            continue
        message_console().print(f"{place}: reused")
        if place not in entry.paths:
            entry.paths.append(place)
    if missing:
        _require_writable(config.out)
        text = TrainingText(labels)
        sample = _read_sample(labels, config, canaries, text)
        results.eligible, results.canary_rows = sample.eligible, sample.canaries.keys
        if results.text is None and config.scan_rows:
            results.text = scan_rows(sample.scanned, text, patterns, show=config.show_values)
            results.write(config.out)
        for role, source, digest in missing:
            entry = _audit(role, source, digest, config, labels, sample, text, patterns, results)
            results.models.append(entry)
            results.write(config.out)
    write_rules(results, str(config.labels), config.out)
    results.write(config.out)
    return results


def load_patterns(config: AuditConfig) -> list[Patterns]:
    """Return the finders of personal data and secrets.

    Raises:
        SoftshardsError: their libraries are not installed, or a setting is wrong.
    """
    try:
        from trainer.audit.personal_patterns import PersonalPatterns
        from trainer.audit.secret_patterns import SecretPatterns
    except ImportError as error:
        raise SoftshardsError(
            f"the search for personal data and secrets: {first_line(error)}",
            hint="pip install 'softshards[audit]', or leave it out with --scan-rows 0",
        ) from error
    return [PersonalPatterns(config.pii, config.pii_score, config.names), SecretPatterns()]


@dataclass(frozen=True)
class _Sample:
    """Rows of the training set.

    Attributes:
        probed: rows to cut into prefix and continuation.
        scanned: rows whose text is searched.
        eligible: rows that `probed` was drawn from.
        canaries: the canaries to look for, and the rows that contain them.
    """

    probed: list[TrainingRow]
    scanned: list[TrainingRow]
    eligible: int
    canaries: CanaryRows


def _read_sample(
    labels: LabelSet, config: AuditConfig, canaries: list[CanaryRecord], text: TrainingText
) -> _Sample:
    probed = RowSample(config.rows, config.seed, "prefixes")
    scanned = RowSample(config.scan_rows, config.seed, "text")
    seen = CanaryRows(canaries)
    with ProgressBar("read rows", labels.rows) as progress:
        for group in read_groups(labels):
            probed.offer(group, group.has_room(config.prefix, config.continuation))
            scanned.offer(group)
            seen.read(group, text)
            progress.advance(len(group))
    if not probed.seen:
        raise SoftshardsError(
            f"no row has {config.prefix} tokens before {config.continuation} labeled ones",
            path=labels.place,
            hint="lower --prefix or --continuation",
        )
    if canaries and not seen.keys:
        message_console().print("warning: no row contains a canary: the model cannot have seen one")
    return _Sample(probed.rows(), scanned.rows(), probed.seen, seen)


def _audit(
    role: Role,
    source: ModelSource,
    digest: str,
    config: AuditConfig,
    labels: LabelSet,
    sample: _Sample,
    text: TrainingText,
    patterns: list[Patterns],
    results: AuditResults,
) -> AuditedModel:
    from trainer.audit.canary_ranks import rank_canaries
    from trainer.audit.continuations import Speaker
    from trainer.audit.prefix_probes import measure_memorization, prefix_probes
    from trainer.audit.value_leaks import known_values, measure_leaks, value_probes

    began = time.monotonic()
    message_console().print(f"{source}: {role}")
    speaker = Speaker(source.folder, labels, config.dtype, map_vocab=config.vocab_map)
    speaker.require_context(config.prefix + config.continuation)
    drawn = prefix_probes(
        sample.probed, prefix=config.prefix, continuation=config.continuation, seed=config.seed
    )
    probes = [each for each in drawn if speaker.knows(each.prefix)]
    if not probes:
        raise SoftshardsError(
            "--vocab-map: every prefix has a token that the model does not know",
            path=source.folder,
            hint="use a model whose tokenizer has the tokens of the training rows",
        )
    memorization, continued = measure_memorization(
        speaker,
        probes,
        labels,
        text,
        continuation=config.continuation,
        ngram=config.ngram,
        show=config.show_values,
    )
    leaks = ranked = None
    if results.text is not None:
        findings = results.text.findings
        values = value_probes(
            findings,
            sample.scanned,
            text,
            limit=config.rows,
            seed=config.seed,
        )
        values = [each for each in values if speaker.knows(each.prefix)]
        known = known_values(findings, sample.scanned, text)
        leaks = measure_leaks(speaker, values, text, patterns, known, continued)
    if sample.canaries.canaries:
        ranked = rank_canaries(
            speaker,
            sample.canaries,
            text,
            candidates=config.candidates,
            seed=config.seed,
        )
    return AuditedModel(
        role=role,
        paths=[str(source)],
        weights=digest,
        dtype=config.dtype,
        seconds=time.monotonic() - began,
        memorization=memorization,
        leaks=leaks,
        canaries=ranked,
    )


def _locate(config: AuditConfig, labels: LabelSet) -> list[Located]:
    """Return the models in the order of the audit: students, teacher, controls.

    Raises:
        SoftshardsError: --teacher did not make the labels.
    """
    named: list[tuple[Role, list[str]]] = [
        ("model", [str(model) for model in config.model]),
        ("teacher", [str(config.teacher)] if config.teacher is not None else []),
        ("control", [str(model) for model in config.control]),
    ]
    located: list[Located] = []
    for role, paths in named:
        for path in paths:
            source = locate_model(path, say=lambda line: message_console().print(line))
            digest = model_digest(source.folder)
            if role == "teacher" and not _may_be_teacher(source, digest, labels):
                raise SoftshardsError(
                    "--teacher is not the checkpoint that made the labels: the digest of its "
                    "weights differs",
                    path=path,
                    hint="give the folder that the set was labeled from, or leave --teacher out",
                )
            located.append((role, source, digest))
    return located


def _may_be_teacher(source: ModelSource, digest: str, labels: LabelSet) -> bool:
    identity = labels.manifest.identity
    if identity.weights_scope == "full":
        return digest == identity.weights
    return is_the_teacher(source.folder, identity) is not False


def _settings(config: AuditConfig, patterns: list[Patterns]) -> AuditSettings:
    searched: dict[str, str] = {}
    for each in patterns:
        searched |= each.settings
    return AuditSettings(
        prefix=config.prefix,
        continuation=config.continuation,
        rows=config.rows,
        ngram=config.ngram,
        seed=config.seed,
        scan_rows=config.scan_rows,
        patterns=searched,
        show_values=config.show_values,
        canaries=sha256_file(config.canaries) if config.canaries is not None else None,
        candidates=config.candidates,
    )


def _require_writable(out: Path) -> None:
    """Check that OUT can be written, before anything takes time.

    Raises:
        SoftshardsError: it is a folder.
        OSError: nothing can be written beside it.
    """
    if out.is_dir():
        raise SoftshardsError("--out is a folder", path=out, hint="give the name of a file")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=out.parent):
        pass


def _open_results(config: AuditConfig, labels: LabelSet, settings: AuditSettings) -> AuditResults:
    """Return the results in OUT, or new ones without models.

    Raises:
        SoftshardsError: the file is something else, or belongs to another label set or settings.
    """
    if not config.out.is_file():
        label_set = HeldOutSet.of(labels, digests=labels.digests)
        return AuditResults(label_set=label_set, settings=settings, eligible=0, models=[])
    results = AuditResults.open(config.out)
    hint = "give another --out, or delete the file"
    if results.label_set.digests != labels.digests:
        raise SoftshardsError("the audit is of a different label set", path=config.out, hint=hint)
    ours, theirs = settings.to_dict(), results.settings.to_dict()
    if changed := [name for name in ours if ours[name] != theirs[name]]:
        raise SoftshardsError(
            f"the audit was made with another {changed[0]}: {theirs[changed[0]]}, not "
            f"{ours[changed[0]]}",
            path=config.out,
            hint=hint,
        )
    return results
