"""The teacher's head and the bases of a set's hidden states: made once, before its first unit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from labeler.console import err
from labeler.labeling.engines.engine import Request
from labeler.labeling.engines.fit_states import OutputHead, fit_layer, fit_states, kl_left
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.planning.budget import STATES_SAMPLE
from labeler.labeling.planning.planned_row import PlannedRow
from labeler.labeling.rendering.spans import count_labels
from labeler.labeling.runs.engine_session import EngineSession
from labeler.labeling.runs.keep_positions import keep_positions
from labeler.labeling.runs.locks import set_lock
from labeler.labeling.runs.stopping import Interrupted, Stop
from labeler.labeling.runs.unit_requests import unit_requests
from labeler.labeling.writing.set_place import SetPlace
from schemas import Manifest, SoftshardsError
from schemas.atomic import atomic_path
from schemas.file_names import FINAL, HEAD_FILE
from schemas.fingerprint import sha256_file
from schemas.kept_positions import parse_rule
from schemas.manifest import FileDigest, StatesRecord, read_manifest, write_manifest
from schemas.os_errors import explain_full_disk
from schemas.plan import open_plan, read_unit
from schemas.state_codec import StateBasis
from schemas.stored_head import HeadFacts, read_basis, write_basis
from schemas.version import STATES_1

STEP = 8
"""Minimum rows that are labeled at a time until the sample is large enough."""
MOST_PLANNED = 8 * STATES_SAMPLE
"""Planned labels per dimension after which a sample that is still too small is given up."""
GPU_SPARE = 1 << 30
"""Bytes of a GPU's memory to leave free beside the head."""

States = NDArray[np.float32]


def prepare_states(
    session: EngineSession,
    config: LabelConfig,
    manifest: Manifest,
    place: SetPlace,
    stop: Stop | None = None,
) -> Manifest:
    """Return a manifest with the record of its hidden states.

    The first process that comes here writes head and bases; the others wait for it. Where the rows
    come to too few labels to fit bases to (answers that are shorter than --max-tokens), all
    together or those with `MOST_PLANNED` planned labels per dimension, the states are stored as
    float16, and the identity says so before the first unit is written.

    Args:
        session: a loaded teacher.
        config: all settings.
        manifest: of the set.
        place: the set's place.
        stop: a request to stop, if there may be one.

    Raises:
        Interrupted: `stop` was requested.
        SoftshardsError: the teacher's head cannot be exported, or no basis fits the sample.
    """
    with (
        set_lock(place, "fit the codec of hidden states"),
        explain_full_disk("the head or a basis of hidden states", place.folder),
    ):
        known = read_manifest(place.folder)
        if known.states is None:
            record = _write_files(session, config, manifest, place, stop)
            identity = known.identity.model_copy(update={"states": record.identity})
            changes = {"identity": identity, "identity_digest": identity.digest, "states": record}
            known = known.model_copy(update=changes)
            write_manifest(place.folder, known)
            place.publish()
    names = ("identity", "identity_digest", "states")
    return manifest.model_copy(update={name: getattr(known, name) for name in names})


def read_bases(folder: Path, manifest: Manifest) -> dict[str, StateBasis]:
    """Return the bases of a set's layers; none where states are stored without.

    Raises:
        LabelSetError: one is missing or altered.
    """
    assert manifest.states is not None, "the set has hidden states"
    found = {layer: read_basis(folder, manifest, layer) for layer in manifest.states.layers}
    return {layer: basis for layer, basis in found.items() if basis is not None}


def _write_files(
    session: EngineSession,
    config: LabelConfig,
    manifest: Manifest,
    place: SetPlace,
    stop: Stop | None,
) -> StatesRecord:
    text = manifest.identity.states
    assert text is not None, "the caller checked"
    layers, codec = tuple(text.partition(" ")[0].split(",")), text.partition(" ")[2]
    vocab_size, files = manifest.identity.vocab_size, []
    head = None
    if FINAL in layers:
        head = session.engine.output_head()
        if len(head.weight) < vocab_size:
            raise SoftshardsError(
                f"the teacher's head has {len(head.weight)} rows, its tokenizer {vocab_size} ids",
                path=config.model,
            )
        files.append(_write_head(head, vocab_size, place))
    wanted = 0 if codec == STATES_1 else STATES_SAMPLE
    states = _sample(session, config, open_plan(place.folder, manifest.plan), wanted, stop)
    dimensions = states.shape[2]
    if len(states) < wanted * dimensions:
        err.print(
            f"the rows that were labeled first have {len(states):,} labels, too few for the codec "
            f"of hidden states, which needs {wanted * dimensions:,}: they are stored as float16"
        )
    if codec == STATES_1 or len(states) < wanted * dimensions:
        return StatesRecord(layers=layers, codec="states/1", dimensions=dimensions, files=(*files,))
    fitted, held_out = np.split(states, [len(states) * 3 // 4])
    err.print(f"fitting the codec of hidden states to {len(fitted):,} positions of the set")
    left = None
    for number, layer in enumerate(layers):
        try:
            if layer == FINAL and head is not None:
                real = _for_fitting(head, vocab_size)
                basis = fit_states(real, fitted[:, number], kl=config.state_kl)
                left = _mean_kl(real, basis, held_out[:, number])
            else:
                basis = fit_layer(fitted[:, number], share=config.state_kl)
        except ValueError as error:
            raise SoftshardsError(
                f"the codec of the hidden states {layer} cannot be fitted: {error}",
                path=place.name,
                hint="label into another folder with another --state-kl, or 0 to store float16",
            ) from error
        files.append(write_basis(place.folder, layer, basis))
    if left is not None:
        err.print(f"hidden states: mean KL {left:.2g} on {len(held_out):,} further positions")
    return StatesRecord(
        layers=layers,
        codec="states/2",
        dimensions=dimensions,
        files=(*files,),
        kl_asked=config.state_kl,
        kl_measured=left,
        positions_measured=None if left is None else len(held_out),
    )


def _requests(config: LabelConfig, plan: pq.ParquetFile) -> Iterator[Request]:
    """Yield the requests of the plan, those of a unit in the order of a seed."""
    for unit in range(plan.metadata.num_row_groups):
        rows: list[PlannedRow] = read_unit(plan, unit).to_pylist()
        requests = unit_requests(rows, seed=config.seed, samples=config.samples_per_row)
        for number in np.random.default_rng(config.seed).permutation(len(requests)):
            yield requests[number]


def _take(requests: Iterator[Request], config: LabelConfig, labels: int) -> list[Request]:
    """Take at least `STEP` requests whose planned labels are at least `labels`, if there are."""
    taken: list[Request] = []
    for request in requests:
        taken.append(request)
        labels -= _planned_labels(request, config)
        if len(taken) >= STEP and labels <= 0:
            break
    return taken


def _planned_labels(request: Request, config: LabelConfig) -> int:
    return config.max_tokens if config.mode == "generate" else count_labels(request.spans)


def _sample(
    session: EngineSession,
    config: LabelConfig,
    plan: pq.ParquetFile,
    per_dimension: int,
    stop: Stop | None,
) -> States:
    """Return the states [n, layers, d] of the first rows: so many per dimension, or fewer.

    There are fewer where the rows, or those with `MOST_PLANNED` planned labels per dimension, come
    to less. A step's labels before --keep-positions are in memory: about as many as are missing.

    Raises:
        SoftshardsError: no row could be labeled.
        Interrupted: `stop` was requested.
    """
    rule = None if config.keep_positions is None else parse_rule(config.keep_positions)
    parts: list[States] = []
    found = planned = missing = 0
    requests = _requests(config, plan)
    while step := _take(requests, config, missing):
        if stop is not None and stop.signal is not None:
            raise Interrupted(stop.signal)
        counts = [_planned_labels(request, config) for request in step]
        planned += sum(n if rule is None else rule.most_labels(n, 1) for n in counts)
        labeled = keep_positions(session.label(step, lambda _: None)[0], config.keep_positions)
        for row in sorted(labeled, key=lambda row: (row.request.index, row.request.sample)):
            assert row.labels.states is not None, "the engine was asked for them"
            parts.append(row.labels.states)
            found += len(row.labels)
            missing = per_dimension * parts[0].shape[2] - found
            if missing <= 0:
                return np.concatenate(parts)
        if parts and planned >= MOST_PLANNED * parts[0].shape[2]:
            break
    if not parts:
        raise SoftshardsError(
            "no row could be labeled",
            hint="--limit 10 --engine transformers shows what a teacher answers",
        )
    return np.concatenate(parts)


def _mean_kl(head: OutputHead, basis: StateBasis, states: States) -> float:
    return float(kl_left(head, states, basis.states(basis.codes(states))).mean())


def _write_head(head: OutputHead, vocab_size: int, place: SetPlace) -> FileDigest:
    from safetensors.torch import save_file

    facts = HeadFacts(scale=head.scale, softcap=head.softcap, valid_vocab=vocab_size)
    tensors = {"weight": head.weight.contiguous()}
    if head.bias is not None:
        tensors["bias"] = head.bias.contiguous()
    path = place.folder / HEAD_FILE
    with atomic_path(path) as tmp:
        save_file(tensors, tmp, metadata=facts.metadata)
    return FileDigest(path=HEAD_FILE, sha256=sha256_file(path))


def _for_fitting(head: OutputHead, vocab_size: int) -> OutputHead:
    """Return the head of the real ids in float32, on a GPU that has room for it."""
    weight, bias = head.weight[:vocab_size], head.bias
    device = "cpu"
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        device = "cuda" if free > 8 * weight.numel() + GPU_SPARE else "cpu"
    return dataclasses.replace(
        head,
        weight=weight.to(device, torch.float32),
        bias=None if bias is None else bias[:vocab_size].to(device, torch.float32),
    )
