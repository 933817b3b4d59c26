"""Work units through the engine: read the plan, label, hand over to be written and journaled."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from labeler.console import err, human_bytes, human_seconds, progress
from labeler.labeling.engines.capture import nucleus
from labeler.labeling.engines.engine import Engine, EngineFacts, Failed, Labeled
from labeler.labeling.inputs.read_records import Reject
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.planning.engine_memory import (
    checkpoint_size,
    engine_memory,
    require_memory,
)
from labeler.labeling.planning.planned_row import PlannedRow
from labeler.labeling.runs import energy
from labeler.labeling.runs.energy import Energy
from labeler.labeling.runs.engine_session import EngineSession
from labeler.labeling.runs.journal_upkeep import compact_after
from labeler.labeling.runs.keep_positions import keep_positions
from labeler.labeling.runs.load_engine import load_engine
from labeler.labeling.runs.stopping import Stop
from labeler.labeling.runs.unit_requests import as_reject, unit_requests
from labeler.labeling.teacher.teacher import Teacher
from labeler.labeling.writing.background import BackgroundWriter
from labeler.labeling.writing.set_place import SetPlace
from labeler.labeling.writing.shard_writer import write_unit
from schemas import Manifest, SoftshardsError, __version__
from schemas.arrow import ASKED
from schemas.os_errors import explain_full_disk
from schemas.plan import PLAN, open_plan, read_unit
from schemas.state_codec import StateBasis
from schemas.version import STATES_1

FEW_REJECTS = 10
"""Minimum rejects before their share can end a run."""


def label_units(
    todo: list[int],
    config: LabelConfig,
    teacher: Teacher,
    manifest: Manifest,
    place: SetPlace,
    stop: Stop,
) -> int:
    """Label the units `todo` in order; a thread writes each while the next is labeled.

    Returns:
        The number of journaled units; fewer than `todo` where `stop` was requested.

    Raises:
        SoftshardsError: the engine cannot load the teacher or fails, the disk is full, or too many
            rows are rejected. Units that were labeled before are safe.
    """
    with (
        UnitLabeler(config, teacher, manifest, place, stop) as labeler,
        progress("rows", note=True) as bar,
    ):
        plan = open_plan(place.folder, manifest.plan)
        task = bar.add_task("labeling", total=count_rows(plan, todo, config), note="")
        for done, unit in enumerate(todo):
            if stop.requested:
                return done
            count = labeler.label(unit, lambda note: bar.update(task, note=note))
            bar.advance(task, count.rows)
    return len(todo)


def count_rows(plan: pq.ParquetFile, units: list[int], config: LabelConfig) -> int:
    """Return how many rows units of a plan have, generations counted one by one."""
    rows: int = sum(plan.metadata.row_group(unit).num_rows for unit in units)
    return rows * config.samples_per_row


@dataclass(frozen=True, kw_only=True)
class UnitCount:
    """What a unit came to, and the seconds that the engine took."""

    rows: int
    labels: int
    seconds: float


class UnitLabeler:
    """A loaded teacher that labels units; a thread writes each while the next is labeled.

    Leaving the context waits for the last unit to be journaled, and frees the teacher.

    Raises:
        SoftshardsError: the engine cannot load the teacher, or the teacher cannot fit in memory.
    """

    def __init__(
        self,
        config: LabelConfig,
        teacher: Teacher,
        manifest: Manifest,
        place: SetPlace,
        stop: Stop | None = None,
    ) -> None:
        self._config, self._teacher = config, teacher
        self._manifest, self._place = manifest, place
        self._plan = open_plan(place.folder, manifest.plan)
        asks = manifest.identity.ids_from is not None
        if asks != (ASKED.name in self._plan.schema_arrow.names):
            raise SoftshardsError(
                "the plan and the set's identity differ in the ids that the input asked for",
                path=place.folder / PLAN,
                hint="delete the plan: the same `labeler label` command plans again",
            )
        self._rejected = _RejectShare(config.max_reject_share, config.model)
        step, identity = manifest.provenance["max_batched_tokens"], manifest.identity
        size = checkpoint_size(config.model, identity.dtype)
        memory = engine_memory(config, size, vocab_size=identity.vocab_size, batched_tokens=step)
        require_memory(memory, config.model)

        def load(batched_tokens: int) -> Engine:
            return load_engine(teacher, config, identity, batched_tokens=batched_tokens)

        err.print(f"loading the teacher {teacher.path} into {config.engine}")
        self._session = EngineSession(load, step)
        self._bases: dict[str, StateBasis] = {}
        if identity.states is not None:
            from labeler.labeling.runs.prepare_states import prepare_states, read_bases  # torch

            try:
                self._manifest = prepare_states(self._session, config, manifest, place, stop)
                self._bases = read_bases(place.folder, self._manifest)
            except BaseException:
                self._session.close()
                raise
        self._writer = BackgroundWriter()

    @property
    def facts(self) -> EngineFacts:
        """The facts of the engine that is loaded now."""
        return self._session.engine.facts

    def label(self, unit: int, note: Callable[[str], None]) -> UnitCount:
        """Label a unit and hand it to the thread that writes, once that has written the last one.

        Args:
            unit: its number.
            note: called with the progress and the speed.

        Raises:
            SoftshardsError: as `label_units`; also if the unit before could not be written.
        """
        config = self._config
        rows: list[PlannedRow] = read_unit(self._plan, unit).to_pylist()
        requests = unit_requests(rows, seed=config.seed, samples=config.samples_per_row)
        meter = energy.start()
        clock = time.perf_counter()
        labeled, failed = self._session.label(requests, note)
        labeled = keep_positions(labeled, config.keep_positions)
        states = self._manifest.states
        if states is not None and states.codec == STATES_1:
            labeled, too_large = _within_float16(labeled)
            failed += too_large
        seconds = time.perf_counter() - clock
        # A served teacher's energy is spent on another machine.
        used = None if config.engine == "served" else meter.read()
        rejects = [as_reject(item, rows, strict=config.strict) for item in failed]
        self._rejected.add(len(requests), rejects)
        unit_labels = _LabeledUnit(
            unit=unit,
            rows=rows,
            labeled=sorted(labeled, key=lambda r: (r.request.index, r.request.sample)),
            rejects=sorted(rejects, key=lambda r: (r.id, r.chunk or 0, r.sample or 0)),
            facts=self.facts,
            engine_seconds=seconds,
            provenance=_provenance(self.facts, seconds, used),
        )
        self._writer.submit(
            functools.partial(
                _write,
                unit_labels,
                config,
                self._teacher,
                self._manifest,
                self._place,
                self._bases,
            )
        )
        labels = sum(len(row.labels) for row in labeled)
        return UnitCount(rows=len(requests), labels=labels, seconds=seconds)

    def flush(self) -> None:
        """Wait until the last unit is journaled.

        Raises:
            Exception: it could not be written.
        """
        self._writer.wait()

    def __enter__(self) -> UnitLabeler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        with contextlib.closing(self._session):
            self._writer.__exit__(kind, error, None)


@dataclass(frozen=True, kw_only=True)
class _LabeledUnit:
    """A unit that was labeled and waits to be written."""

    unit: int
    rows: list[PlannedRow]
    labeled: list[Labeled]
    rejects: list[Reject]
    facts: EngineFacts
    engine_seconds: float
    provenance: dict[str, object]


def _write(
    unit: _LabeledUnit,
    config: LabelConfig,
    teacher: Teacher,
    manifest: Manifest,
    place: SetPlace,
    bases: Mapping[str, StateBasis],
) -> None:
    labeled = unit.labeled
    if config.top_p_labels < 1:
        cut = functools.partial(
            nucleus,
            mass=config.top_p_labels,
            min_k=config.min_k,
            temperatures=config.label_temperatures,
        )
        labeled = [dataclasses.replace(row, labels=cut(row.labels)) for row in labeled]
    texts: list[str | None] = [None] * len(labeled)
    if config.mode == "generate":
        texts = _texts(labeled, teacher)
    with explain_full_disk(f"unit {unit.unit}", place.folder):
        entry = write_unit(
            place.folder,
            unit.unit,
            unit.rows,
            labeled,
            unit.rejects,
            texts=texts,
            identity=manifest.identity,
            facts=unit.facts,
            row_group_labels=config.row_group_labels,
            provenance=unit.provenance,
            codec=manifest.codec,
            states=manifest.states,
            bases=bases,
        )
    place.publish_unit(unit.unit)
    compact_after(place, unit.unit, stride=config.world_size, planned_units=manifest.planned_units)
    if not err.is_terminal:
        seconds = human_seconds(unit.engine_seconds)
        err.print(
            f"unit {unit.unit + 1} of {manifest.planned_units}: {entry.rows} rows, "
            f"{entry.labels} labels in {seconds}, {human_bytes(entry.bytes)}"
        )


def _within_float16(labeled: list[Labeled]) -> tuple[list[Labeled], list[Failed]]:
    """Divide rows into those whose hidden states float16 can hold, and the others, as failed."""
    good: list[Labeled] = []
    bad: list[Failed] = []
    for row in labeled:
        states = row.labels.states
        if states is None or np.abs(states).max(initial=0) <= np.finfo(np.float16).max:
            good.append(row)
        else:
            reason = (
                "a hidden state is too large for float16 (--state-kl above 0 stores a codec "
                "without that limit, where a set has enough labels)"
            )
            bad.append(Failed(request=row.request, reason=reason))
    return good, bad


class _RejectShare:
    """Ends a run whose teacher cannot label its rows."""

    def __init__(self, most: float, model: Path) -> None:
        self._most, self._model = most, model
        self._rows = self._rejects = 0

    def add(self, rows: int, rejects: list[Reject]) -> None:
        """Count a unit.

        Raises:
            SoftshardsError: the share of rejects is above the limit.
        """
        self._rows += rows
        self._rejects += len(rejects)
        share = self._rejects / self._rows
        if self._rejects >= FEW_REJECTS and share > self._most:
            raise SoftshardsError(
                f"{self._rejects} of {self._rows} rows could not be labeled ({share:.0%}, more "
                f"than --max-reject-share); the last: {rejects[-1].reason}",
                path=self._model,
                row=rejects[-1].id,
                hint="check the teacher with `labeler label --limit 10`, or raise "
                "--max-reject-share",
            )


def _texts(labeled: list[Labeled], teacher: Teacher) -> list[str | None]:
    """Return generations as text, for people; the ids are what counts."""
    answers = [item.input_ids[item.spans[0].start :] for item in labeled]
    return [teacher.tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]


def _provenance(facts: EngineFacts, seconds: float, used: Energy | None) -> dict[str, object]:
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
