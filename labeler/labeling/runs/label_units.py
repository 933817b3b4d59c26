"""Work units through the engine: read the plan, label, hand over to be written and journaled."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from labeler.console import err, human_bytes, human_seconds, progress
from labeler.labeling.engines.capture import nucleus
from labeler.labeling.engines.engine import (
    Engine,
    EngineFacts,
    EngineOutOfMemory,
    Failed,
    Labeled,
    Request,
)
from labeler.labeling.inputs.read_records import Reject
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.rendering.spans import Span
from labeler.labeling.runs import energy
from labeler.labeling.runs.energy import Energy
from labeler.labeling.runs.stopping import Stop
from labeler.labeling.teacher.teacher import Teacher
from labeler.labeling.writing.background import BackgroundWriter
from labeler.labeling.writing.shard_writer import write_unit
from schemas import Identity, Manifest, SoftshardsError, __version__
from schemas.os_errors import full_disk_explained
from schemas.plan import open_plan, read_unit

SMALLEST_STEP = 32
"""Tokens an engine step below which halving it again would not save the run."""
FEW_REJECTS = 10
"""Rejects below which their share says nothing."""


def label_units(
    todo: list[int], config: LabelConfig, teacher: Teacher, manifest: Manifest, stop: Stop
) -> int:
    """Label the units `todo`, one after the other; a thread writes each while the next is labeled.

    Returns:
        How many are journaled; fewer than asked where `stop` was requested.

    Raises:
        SoftshardsError: the engine cannot load the teacher or fails, the disk is full, or too many
            rows are rejected. Units that were labeled before are safe.
    """
    plan = open_plan(config.out, manifest.plan)
    samples = config.samples if config.mode == "generate" else 1
    total = sum(plan.metadata.row_group(unit).num_rows for unit in todo) * samples
    rejected = _RejectShare(config)
    done = 0
    with (
        contextlib.closing(_Session(config, teacher, manifest)) as session,
        progress("rows", note=True) as bar,
        BackgroundWriter() as writer,
    ):
        task = bar.add_task("labeling", total=total, note="")
        for unit in todo:
            if stop.requested:
                break
            rows = read_unit(plan, unit).to_pylist()
            requests = _requests(rows, config.seed, samples)
            meter = energy.start()
            clock = time.perf_counter()
            labeled, failed = session.label(requests, lambda note: bar.update(task, note=note))
            seconds = time.perf_counter() - clock
            # A served teacher's energy is spent on another machine.
            used = None if config.engine == "served" else meter.read()
            bar.advance(task, len(requests))
            rejects = [_reject(item, rows, strict=config.strict) for item in failed]
            rejected.add(len(requests), rejects)
            finished = _Finished(
                unit=unit,
                rows=rows,
                labeled=sorted(labeled, key=lambda r: (r.request.index, r.request.sample)),
                rejects=sorted(rejects, key=lambda r: (r.id, r.chunk or 0, r.sample or 0)),
                facts=session.engine.facts,
                provenance=_provenance(session.engine.facts, seconds, used),
            )
            writer.submit(functools.partial(_write, finished, config, teacher, manifest))
            done += 1
    return done


@dataclass(frozen=True, kw_only=True)
class _Finished:
    """A unit that was labeled and waits to be written."""

    unit: int
    rows: list[dict[str, Any]]
    labeled: list[Labeled]
    rejects: list[Reject]
    facts: EngineFacts
    provenance: dict[str, Any]


def _write(finished: _Finished, config: LabelConfig, teacher: Teacher, manifest: Manifest) -> None:
    labeled = finished.labeled
    if config.top_p_labels < 1:
        cut = functools.partial(nucleus, mass=config.top_p_labels, min_k=config.min_k)
        labeled = [dataclasses.replace(row, labels=cut(row.labels)) for row in labeled]
    with full_disk_explained(f"unit {finished.unit}", config.out):
        entry = write_unit(
            config.out,
            finished.unit,
            finished.rows,
            labeled,
            finished.rejects,
            texts=_texts(labeled, config, teacher),
            identity=manifest.identity,
            facts=finished.facts,
            row_group_labels=config.row_group_labels,
            provenance=finished.provenance,
            codec=manifest.codec,
        )
    if not err.is_terminal:
        seconds = human_seconds(finished.provenance["engine_seconds"])
        err.print(
            f"unit {finished.unit + 1} of {manifest.planned_units}: {entry.rows} rows, "
            f"{entry.labels} labels in {seconds}, {human_bytes(entry.bytes)}"
        )


class _Session:
    """The engine of a run, loaded again with smaller steps when its memory runs out."""

    def __init__(self, config: LabelConfig, teacher: Teacher, manifest: Manifest) -> None:
        self._config, self._teacher, self._identity = config, teacher, manifest.identity
        self._batched_tokens: int = manifest.provenance["max_batched_tokens"]
        err.print(f"loading the teacher {teacher.path} into {config.engine}")
        self.engine = self._load()

    def label(
        self, requests: list[Request], note: Callable[[str], None]
    ) -> tuple[list[Labeled], list[Failed]]:
        """Label the requests of a unit; `note` is told the speed while it goes on."""
        while True:
            try:
                return _outcomes(self.engine, requests, note)
            except EngineOutOfMemory as error:
                self._halve(error)
            # Here nothing holds the failed engine's frames any more.
            self.close()
            self.engine = self._load()

    def _load(self) -> Engine:
        while True:
            try:
                return load_engine(
                    self._teacher,
                    self._config,
                    self._identity,
                    batched_tokens=self._batched_tokens,
                )
            except EngineOutOfMemory as error:
                self._halve(error)

    def _halve(self, error: EngineOutOfMemory) -> None:
        smaller = self._batched_tokens // 2
        if smaller < SMALLEST_STEP:
            raise error
        err.print(
            f"the engine ran out of memory with steps of {self._batched_tokens} tokens: "
            f"loading it again with {smaller} (--max-batched-tokens)",
            style="yellow",
        )
        self._batched_tokens = smaller

    def close(self) -> None:
        """Free the engine, if one is loaded: loading it again may have failed."""
        if hasattr(self, "engine"):
            self.engine.close()
            del self.engine


def _outcomes(
    engine: Engine, requests: list[Request], note: Callable[[str], None]
) -> tuple[list[Labeled], list[Failed]]:
    labeled: list[Labeled] = []
    failed: list[Failed] = []
    labels, clock = 0, time.perf_counter()
    for outcome in engine.run(requests):
        if isinstance(outcome, Labeled):
            labeled.append(outcome)
            labels += len(outcome.labels)
        else:
            failed.append(outcome)
        count = len(labeled) + len(failed)
        speed = labels / (time.perf_counter() - clock)
        note(f"| {count}/{len(requests)} of this unit, {speed:,.0f} labels/s")
    return labeled, failed


class _RejectShare:
    """Stops a run whose teacher cannot label what it is given."""

    def __init__(self, config: LabelConfig) -> None:
        self._config = config
        self._rows = self._rejects = 0

    def add(self, rows: int, rejects: list[Reject]) -> None:
        """Count a unit.

        Raises:
            SoftshardsError: the share of rejects is above what is allowed.
        """
        self._rows += rows
        self._rejects += len(rejects)
        share = self._rejects / self._rows
        if self._rejects >= FEW_REJECTS and share > self._config.max_reject_share:
            raise SoftshardsError(
                f"{self._rejects} of {self._rows} rows could not be labeled ({share:.0%}, more "
                f"than --max-reject-share); the last: {rejects[-1].reason}",
                path=self._config.model,
                row=rejects[-1].id,
                hint="check the teacher with `labeler label --limit 10`, or raise "
                "--max-reject-share",
            )


def load_engine(
    teacher: Teacher, config: LabelConfig, identity: Identity, *, batched_tokens: int
) -> Engine:
    """Load the engine asked for, to work in steps of at most `batched_tokens`.

    Raises:
        SoftshardsError: it cannot be loaded, or runs the teacher in another dtype than recorded.
    """
    engine: Engine
    if config.engine == "vllm":
        from labeler.labeling.engines.vllm.vllm_engine import VllmEngine

        engine = VllmEngine(
            teacher,
            config,
            dtype=identity.dtype,
            k=identity.k,
            batched_tokens=batched_tokens,
        )
    elif config.engine == "served":
        from labeler.labeling.engines.served.served_engine import ServedEngine

        engine = ServedEngine(
            teacher,
            config,
            dtype=identity.dtype,
            head_dtype=identity.head_dtype,
            k=identity.k,
        )
    else:
        from labeler.labeling.engines.transformers_engine import TransformersEngine

        engine = TransformersEngine(
            teacher,
            dtype=identity.dtype,
            head_dtype=identity.head_dtype,
            k=identity.k,
            sampling=config.sampling,
            draws=config.draws,
        )
    facts = engine.facts
    if (facts.dtype, facts.head_dtype) != (identity.dtype, identity.head_dtype):
        engine.close()
        raise SoftshardsError(
            f"the engine runs the teacher in {facts.dtype} with a {facts.head_dtype} head, "
            f"asked were {identity.dtype} and {identity.head_dtype}",
            hint="pass --head-dtype model, or another --dtype",
        )
    return engine


def _requests(rows: list[dict[str, Any]], seed: int, samples: int) -> list[Request]:
    return [
        Request(
            index=index,
            sample=sample,
            input_ids=row["input_ids"],
            spans=tuple(Span(**span) for span in row["spans"]),
            seed=_row_seed(seed, row["id"], row["chunk"], sample),
        )
        for index, row in enumerate(rows)
        for sample in range(samples)
    ]


def _row_seed(seed: int, id_: str, chunk: int, sample: int) -> int:
    """A seed a row: the same row gets the same one in any order and on any machine."""
    digest = hashlib.sha256(f"{seed}\0{id_}\0{chunk}\0{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


def _reject(failed: Failed, rows: list[dict[str, Any]], *, strict: bool) -> Reject:
    row = rows[failed.request.index]
    if strict:
        raise SoftshardsError(failed.reason, path=row["source"], row=row["id"])
    return Reject(
        id=row["id"],
        chunk=row["chunk"],
        sample=failed.request.sample,
        source=row["source"],
        reason=failed.reason,
    )


def _texts(labeled: list[Labeled], config: LabelConfig, teacher: Teacher) -> list[str | None]:
    """Generations as text, for people; the ids are the truth."""
    if config.mode == "score":
        return [None] * len(labeled)
    answers = [item.input_ids[item.spans[0].start :] for item in labeled]
    return [teacher.tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]


def _provenance(facts: EngineFacts, seconds: float, used: Energy | None) -> dict[str, Any]:
    return {
        "engine": facts.name,
        "engine_version": facts.version,
        "softshards": __version__,
        "pyarrow": pa.__version__,
        "device": facts.device,
        "settings": {name: str(value) for name, value in facts.settings.items()},
        "engine_seconds": round(seconds, 3),
        "energy_joules": used and round(used.joules, 1),
        "energy_source": used and used.source,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
