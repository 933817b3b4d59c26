"""Work units through the engine: read the plan, label, write the shard, journal it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from labeler.config import LabelConfig
from labeler.console import err, human_bytes, human_seconds, progress
from labeler.engine import Engine, Failed, Labeled, Request
from labeler.rendering import Span
from labeler.shard_writer import write_unit
from labeler.sources import Reject
from labeler.teacher import Teacher
from schemas import Identity, Manifest, SoftshardsError, __version__
from schemas.plan import open_plan, read_unit


def label_units(todo: list[int], config: LabelConfig, teacher: Teacher, manifest: Manifest) -> None:
    """Label the units `todo`, one after the other; each is durable before the next begins.

    Raises:
        SoftshardsError: the engine cannot load the teacher, or the disk is full.
    """
    plan = open_plan(config.out, manifest.plan)
    samples = config.samples if config.mode == "generate" else 1
    total = sum(plan.metadata.row_group(unit).num_rows for unit in todo) * samples
    err.print(f"loading the teacher {teacher.path} into {config.engine}")
    engine = load_engine(teacher, config, manifest.identity)
    with contextlib.closing(engine), progress("rows", note=True) as bar:
        task = bar.add_task("labeling", total=total, note="")
        for unit in todo:
            rows = read_unit(plan, unit).to_pylist()
            clock = time.perf_counter()
            labeled: list[Labeled] = []
            rejects: list[Reject] = []
            done = 0
            for outcome in engine.run(_requests(rows, config.seed, samples)):
                if isinstance(outcome, Labeled):
                    labeled.append(outcome)
                    done += len(outcome.labels)
                else:
                    rejects.append(_reject(outcome, rows, strict=config.strict))
                speed = done / (time.perf_counter() - clock)
                bar.update(task, advance=1, note=f"| {speed:,.0f} labels/s")
            seconds = time.perf_counter() - clock
            labeled.sort(key=lambda item: (item.request.index, item.request.sample))
            rejects.sort(key=lambda item: (item.id, item.chunk or 0, item.sample or 0))
            with _disk_full_explained(unit, config):
                entry = write_unit(
                    config.out,
                    unit,
                    rows,
                    labeled,
                    rejects,
                    texts=_texts(labeled, config, teacher),
                    identity=manifest.identity,
                    facts=engine.facts,
                    row_group_labels=config.row_group_labels,
                    provenance=_provenance(engine, seconds),
                )
            if not err.is_terminal:
                err.print(
                    f"unit {unit + 1} of {manifest.planned_units}: {entry.rows} rows, "
                    f"{entry.labels} labels in {human_seconds(seconds)}, {human_bytes(entry.bytes)}"
                )


def load_engine(teacher: Teacher, config: LabelConfig, identity: Identity) -> Engine:
    """Load the engine asked for.

    Raises:
        SoftshardsError: it cannot be loaded, or runs the teacher in another dtype than recorded.
    """
    engine: Engine
    if config.engine == "vllm":
        from labeler.vllm_engine import VllmEngine

        engine = VllmEngine(teacher, config, dtype=identity.dtype, k=identity.k)
    else:
        from labeler.transformers_engine import TransformersEngine

        engine = TransformersEngine(
            teacher,
            dtype=identity.dtype,
            head_dtype=identity.head_dtype,
            k=identity.k,
            sampling=config.sampling,
        )
    facts = engine.facts
    if (facts.dtype, facts.head_dtype) != (identity.dtype, identity.head_dtype):
        engine.close()
        raise SoftshardsError(
            f"the engine runs the teacher in {facts.dtype} with a {facts.head_dtype} head, "
            f"asked were {identity.dtype} and {identity.head_dtype}",
            mend="pass --head-dtype model, or another --dtype",
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


def _provenance(engine: Engine, seconds: float) -> dict[str, Any]:
    facts = engine.facts
    return {
        "engine": facts.name,
        "engine_version": facts.version,
        "softshards": __version__,
        "pyarrow": pa.__version__,
        "device": facts.device,
        "settings": {name: str(value) for name, value in facts.settings.items()},
        "engine_seconds": round(seconds, 3),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


@contextlib.contextmanager
def _disk_full_explained(unit: int, config: LabelConfig) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SoftshardsError(
            f"the disk is full: unit {unit} could not be written; finished units are safe",
            path=config.out,
            mend="free some space and run the same command: it goes on from there",
        ) from error
