"""Write rows of label sets as a new label set in either codec, and compare every row."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from labeler.console import progress
from labeler.labeling.writing.set_place import SetPlace, open_place
from labeler.labelsets.common.decode_rows import decode_rows
from labeler.labelsets.derive.derived_writer import CopiedStates, FinishedUnit, write_derived
from schemas import (
    Identity,
    LabelSet,
    Manifest,
    RowGroup,
    SoftshardsError,
    rounding,
    to_plain,
)
from schemas.arrow import KEY_COLUMNS, TOPK_COLUMNS
from schemas.atomic import atomic_path
from schemas.file_names import HEAD, TOKENIZER, hidden_name, shard_name
from schemas.fingerprint import sha256_file
from schemas.hidden_part import hidden_schema
from schemas.manifest import ROUNDED_BY, FileDigest, require_same_identity
from schemas.version import PLAIN_1


class ShardError(TypedDict):
    """The error of a recoded shard, as the journal records it.

    Attributes:
        labels: labels compared.
        max_error: largest error of a logprob in nats.
        kl: mean KL(source || written) over top-k and tail in nats.
    """

    labels: int
    max_error: float
    kl: float


def recode(
    sources: Sequence[LabelSet],
    out: Path | str | SetPlace,
    *,
    codec: str,
    how: str,
    drop_states: bool = False,
) -> Manifest:
    """Write all rows of `sources` as one label set; a shard of a source stays a shard.

    Every row is read back and compared with its source: ids, hidden states and all other columns
    must be equal, logprobs within the codec's documented error. Rejects stay with the sources.

    Args:
        sources: label sets or views with one identity.
        out: folder, URL or opened place of the new set; an unfinished one there is resumed.
        codec: codec of the new set.
        how: name of the operation in the manifest: `convert`, `merge`, `curate`.
        drop_states: leave hidden states out; they are not read then.

    Raises:
        SoftshardsError: identities differ, a source is damaged or is in `out`, or a row changed.
    """
    require_mergeable(sources, drop_states=drop_states)
    with nullcontext(out) if isinstance(out, SetPlace) else open_place(out) as place:
        return _recode(sources, place, codec, how, drop_states)


def require_mergeable(sources: Sequence[LabelSet], *, drop_states: bool) -> None:
    """Refuse sets that cannot become one.

    Args:
        sources: the sets.
        drop_states: their hidden states do not matter.

    Raises:
        IdentityError: their settings differ.
        SoftshardsError: their hidden states are in different bases.
    """
    first, *others = (labels.manifest for labels in sources)
    for other, labels in zip(others, sources[1:], strict=True):
        expected, found = first.identity, other.identity
        hint = "only sets with the same teacher and settings can be merged"
        if drop_states:
            expected, found = _without_states(expected), _without_states(found)
        elif expected.states != found.states:
            hint += "; --drop-states merges the labels alone"
        require_same_identity(expected, found, path=labels.place, hint=hint)
        if not drop_states and _state_files(first) != _state_files(other):
            raise SoftshardsError(
                f"its hidden states have other bases, or another head, than {sources[0].place}",
                path=labels.place,
                hint="--drop-states merges the labels alone",
            )


def _state_files(manifest: Manifest) -> dict[str, str]:
    files = () if manifest.states is None else manifest.states.files
    return {file.path: file.sha256 for file in files}


def _without_states(identity: Identity) -> Identity:
    return identity.model_copy(update={"states": None})


def _recode(
    sources: Sequence[LabelSet], place: SetPlace, codec: str, how: str, drop_states: bool
) -> Manifest:
    first = sources[0]
    identity, record = first.manifest.identity, first.states
    if drop_states:
        identity, record = _without_states(identity), None
    where = {labels.remote.url if labels.remote else labels.path.resolve() for labels in sources}
    if (place.remote.url if place.remote else place.folder.resolve()) in where:
        raise SoftshardsError(
            "the new set would overwrite its source", path=place.name, hint="name another folder"
        )
    shards = [(labels, groups) for labels in sources for groups in _by_shard(labels)]
    if not shards:
        raise SoftshardsError("there are no rows to write", path=first.path)

    def check(unit: int) -> dict[str, object]:
        labels, groups = shards[unit]
        if record is not None:
            _compare_hidden(labels, groups, place.folder / hidden_name(unit))
        return {"recoded": compare_shards(labels, groups, place.folder / shard_name(unit), codec)}

    rounded = {labels.manifest.rounding_codec for labels in sources} - {PLAIN_1, codec}
    with progress("shards") as bar:
        opening = bar.track(shards, description="opening")
        units = [_unit(*shard, has_states=record is not None) for shard in opening]
    facts = ("teacher", "parents", "max_batched_tokens", "chat_template")
    return write_derived(
        place,
        units,
        identity=identity,
        codec=codec,
        derived={
            "how": how,
            "from": [origin(labels) for labels in sources],
            **({"dropped": "hidden states"} if drop_states and first.states else {}),
            **({ROUNDED_BY: rounded.pop()} if rounded else {}),
        },
        copy_tokenizer=tokenizer_of(first),
        provenance={n: v for n in facts if (v := first.manifest.provenance.get(n)) is not None},
        check=check,
        states=None if record is None else CopiedStates(record=record, copy_files=head_of(first)),
    )


def origin(labels: LabelSet) -> dict[str, object]:
    """Return the facts about a source that the manifest of a derived set records."""
    return {
        "path": labels.place,
        "self_digest": labels.manifest.self_digest,
        "identity_digest": labels.manifest.identity_digest,
        "content": labels.content_digest,
        "view": labels.view.made if labels.view else None,
        "rows": labels.rows,
    }


def tokenizer_of(labels: LabelSet) -> Callable[[Path], tuple[FileDigest, ...]]:
    """Return a function that copies the tokenizer of a set into another one."""

    def copy(out: Path) -> tuple[FileDigest, ...]:
        (out / TOKENIZER).mkdir(parents=True, exist_ok=True)
        for file in labels.manifest.tokenizer_files:
            shutil.copyfile(labels.path / file.path, out / file.path)
            if sha256_file(out / file.path) != file.sha256:
                raise SoftshardsError("a tokenizer file changed during the copy", path=file.path)
        return labels.manifest.tokenizer_files

    return copy


def head_of(labels: LabelSet) -> Callable[[Path], None]:
    """Return a function that copies the files in `head/` of a set into another one."""

    def copy(out: Path) -> None:
        assert labels.states is not None, "the caller copies states"
        (out / HEAD).mkdir(parents=True, exist_ok=True)
        for file in labels.states.files:
            with atomic_path(out / file.path) as tmp:
                shutil.copyfile(labels.state_file(file), tmp)

    return copy


def _by_shard(labels: LabelSet) -> list[list[RowGroup]]:
    shards: dict[str, list[RowGroup]] = {}
    for group in labels.row_groups:
        shards.setdefault(group.shard, []).append(group)
    return list(shards.values())


def _unit(labels: LabelSet, groups: list[RowGroup], *, has_states: bool) -> FinishedUnit:
    def tables() -> Iterator[pa.Table]:
        return (labels.read_row_group(group) for group in groups)

    def hidden() -> Iterator[pa.Table]:
        return (_hidden_rows(labels, group) for group in groups)

    footer = labels.shard_facts(groups[0])
    number = int(Path(groups[0].shard).stem.removeprefix("part-"))
    entry = labels.journal_entry(number)
    if entry is None:
        raise SoftshardsError(
            f"the journal has no entry of {groups[0].shard}",
            path=labels.place,
            hint="run `labeler repair` on the set",
        )
    return FinishedUnit(
        tables=tables,
        tail_source=footer["tail_source"],
        entropy_source=footer["entropy_source"],
        provenance=entry.provenance,
        hidden=hidden if has_states else None,
    )


def _hidden_rows(labels: LabelSet, group: RowGroup) -> pa.Table:
    """Return the hidden states of a row group as a hidden part has them."""
    assert labels.states is not None, "the caller reads states"
    return labels.read_row_group(group, hidden_schema(labels.states).names)


def _compare_hidden(labels: LabelSet, groups: list[RowGroup], written: Path) -> None:
    """Check that a written hidden part holds what its source holds.

    Raises:
        SoftshardsError: a column differs.
    """
    with pq.ParquetFile(written, page_checksum_verification=True) as file:
        for index, group in enumerate(groups):
            before, after = _hidden_rows(labels, group), file.read_row_group(index)
            for name in before.column_names:
                if not before[name].equals(after[name]):
                    raise SoftshardsError(f"column {name} changed", path=written, hint=REPORT)


def compare_shards(
    labels: LabelSet, groups: list[RowGroup], written: Path, codec: str
) -> ShardError:
    """Check, row by row, that a written shard holds what its source holds.

    Raises:
        SoftshardsError: a row differs by more than the codec allows.
    """
    count, worst, total = 0, 0.0, 0.0
    with pq.ParquetFile(written, page_checksum_verification=True) as file:
        for index, group in enumerate(groups):
            before, after = labels.read_row_group(group), to_plain(file.read_row_group(index))
            error, kl = compare_tables(before, after, codec, written)
            count, worst, total = count + len(kl), max(worst, error), total + float(kl.sum())
    return {"labels": count, "max_error": worst, "kl": total / max(1, count)}


def compare_tables(
    before: pa.Table, after: pa.Table, codec: str, path: Path
) -> tuple[float, np.ndarray]:
    """Return the largest error of a logprob, and the KL of each label [n], in nats.

    Args:
        before: rows of the source.
        after: the same rows as they were written.
        codec: codec of the written rows.
        path: the written file.

    Raises:
        SoftshardsError: naming the row that differs by more than `codec` allows.
    """
    for name in before.column_names:
        if name not in TOPK_COLUMNS and not before[name].equals(after[name]):
            raise SoftshardsError(f"column {name} changed", path=path, hint=REPORT)
    old, new = decode_rows(before), decode_rows(after)
    by_old, by_new = (np.argsort(d.labels.topk_ids, axis=1, kind="stable") for d in (old, new))
    ids = np.take_along_axis(old.labels.topk_ids, by_old, 1)
    if not np.array_equal(ids, np.take_along_axis(new.labels.topk_ids, by_new, 1)):
        raise SoftshardsError("ids changed", path=path, hint=REPORT)
    x = np.take_along_axis(old.labels.topk_logprobs.astype(np.float64), by_old, 1)
    y = np.take_along_axis(new.labels.topk_logprobs.astype(np.float64), by_new, 1)
    finite = np.isfinite(x)
    error = np.abs(np.where(finite, x, 0) - np.where(np.isfinite(y), y, 0))
    allowed = np.zeros_like(x)
    if codec != PLAIN_1:
        allowed = rounding(x, codec) * (1 + 2 * (by_old == 0))  # a step more for the argmax
    bad = (error > allowed).any(axis=1) | (finite != np.isfinite(y)).any(axis=1)
    if bad.any():
        at = int(np.searchsorted(old.offsets, int(np.argmax(bad)), side="right")) - 1
        key = ", ".join(str(before[name][at]) for name in KEY_COLUMNS)
        raise SoftshardsError(
            f"a logprob changed by {error[bad].max():.4f} nats, more than the codec allows",
            path=path,
            row=key,
            hint=REPORT,
        )
    return float(error.max(initial=0)), _kl(x, y, old.labels.tail_logprob.astype(np.float64))


REPORT = "this is a bug of softshards, or a disk error: delete the new set, and report it"


def _kl(x: np.ndarray, y: np.ndarray, tail: np.ndarray) -> np.ndarray:
    """Return KL [n] between (x, tail) and (y, tail), each normalized to sum to one."""
    p, q = (np.concatenate([part, tail[:, None]], axis=1) for part in (x, y))
    p -= np.logaddexp.reduce(p, axis=1, keepdims=True)
    q -= np.logaddexp.reduce(q, axis=1, keepdims=True)
    mass = np.exp(p)
    terms = np.where(mass > 0, mass * (np.where(mass > 0, p, 0) - np.where(mass > 0, q, 0)), 0)
    return np.asarray(terms.sum(axis=1))
