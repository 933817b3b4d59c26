"""Check hidden states: their files, and that the head applied to them gives the stored labels.

Of the head, only the rows for the ids of a label's top-k are needed: differences of logits are
differences of logprobs. So a sample of every row group is checked, without the teacher. The tails
of a few labels are checked over the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.codec import PAD_ID, DecodedLabels, Labels, decode
from schemas.errors import LabelSetError, first_line
from schemas.file_names import FINAL, HEAD_FILE, hidden_beside, is_state_column
from schemas.findings import Finding
from schemas.hidden_part import hidden_schema
from schemas.labelset import LabelSet
from schemas.rounding_error import rounding
from schemas.row_group import RowGroup
from schemas.state_codec import StateBasis, decode_stored
from schemas.store_errors import StoreError
from schemas.stored_head import StoredHead
from schemas.version import PLAIN_1

SAMPLED = 64
"""Labels of a row group that the head is applied to."""
TAILS = 64
"""Labels of a set whose tail is computed over the whole vocabulary."""
TAILS_PER_GROUP = 8
DTYPE_ERRORS = {"float32": 2.0**-10, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Error of a logit by the head's dtype, relative to the largest logit; float32 may be TF32."""
HALF_ERROR = 2.0**-10
"""The same from states in float16."""
PER_LABEL = 40.0
"""A single label may cost so many times the mean KL of `states/2` (20 were measured)."""
CLEARLY = 0.25
"""States are shifted if those of a neighbor leave less than this share of the divergence."""
LEAST = 1e-6
"""A mean divergence in nats that no row group is suspected for."""


@dataclass(frozen=True)
class _Sample:
    """Labels and states of some positions.

    Attributes:
        states: float32 [n, layers, d], as they are stored, rebuilt.
        labels: [n].
        row: int64 [n], the row of each.
    """

    states: NDArray[np.float32]
    labels: Labels
    row: NDArray[np.int64]


@dataclass
class StateChecks:
    """Checks of the hidden states of a set: `open_files`, `examine` each row group, `finish`.

    Attributes:
        labels: the set.
        head: the teacher's; None where only other layers are stored, or it is damaged.
        bases: of each layer, for `states/2`.
        tails: the labels whose tails are checked at the end, and their states.
        has_index: the index of hidden states is good; else no row group can be checked.
    """

    labels: LabelSet
    head: StoredHead | None = None
    bases: dict[str, StateBasis | None] = field(default_factory=dict)
    tails: list[tuple[Labels, NDArray[np.float32]]] = field(default_factory=list)
    has_index: bool = True

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers."""
        return () if self.labels.states is None else self.labels.states.layers

    def open_files(self) -> Iterator[Finding]:
        """Open the index, head and bases; yield what is wrong with them."""
        if not self.layers:
            return
        try:
            _ = self.labels.hidden.groups
        except LabelSetError as error:
            self.has_index = False
            yield _damage(error, str(error.path))
        for layer in self.layers:
            try:
                self.bases[layer] = basis = self.labels.basis(layer)
                if basis is not None and not _is_inverse(basis):
                    what = f"synthesis does not invert analysis in the basis of {layer}"
                    yield Finding(kind="states", where="head/", what=what)
            except (LabelSetError, OSError) as error:
                yield _damage(error, f"the basis of {layer}")
        if FINAL in self.layers:
            try:
                self.head = self.labels.head
            except (LabelSetError, OSError) as error:
                yield _damage(error, HEAD_FILE)

    def examine(self, number: int, group: RowGroup, table: pa.Table) -> Iterator[Finding]:
        """Yield problems of the states of one row group.

        Args:
            number: its number in the set, which decides the sample.
            group: the row group.
            table: its rows of the shard, which `validate_table` has checked.
        """
        record = self.labels.states
        if record is None or not self.has_index:
            return
        where = f"{hidden_beside(group.shard)}, row group {group.index}"
        names = [name for name in hidden_schema(record).names if is_state_column(name)]
        try:
            read = self.labels.hidden.read_states(group, names, table, verify="full")
            stored = decode_stored(read, self.layers)
        except (LabelSetError, pa.ArrowException, OSError) as error:
            yield _damage(error, where)
            return
        except ValueError as error:
            yield Finding(kind="states", where=where, what=first_line(error))
            return
        if stored.dtype == np.float16 and not np.isfinite(stored).all():
            yield Finding(kind="states", where=where, what="a hidden state is not finite")
            return
        if self.head is None or set(self.bases) != set(self.layers) or not len(stored):
            return
        sample = self._sample(number, decode(table), stored)
        with np.errstate(over="ignore", invalid="ignore"):  # of a forged head
            found = [f.inside(where) for f in self._against_labels(self.head, sample)]
        yield from found
        if not found and len(self.tails) * TAILS_PER_GROUP < TAILS:
            some = slice(0, TAILS_PER_GROUP)
            self.tails.append((sample.labels[some], sample.states[some, self.layers.index(FINAL)]))

    def finish(self) -> Iterator[Finding]:
        """Compare tails with the head over the whole vocabulary."""
        if self.head is None or not self.tails:
            return
        costs, bounds = [], []
        with np.errstate(over="ignore", invalid="ignore"):  # of a forged head
            for labels, states in self.tails:
                # The mass of padding, at or past the tokenizer's length, is in the tails, too.
                logits = self.head.logits(states).astype(np.float64)
                logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
                noise, known = self._noise(logits), _at_ids(logits, labels)
                cost, bound = _divergence(labels, known, noise, self._codec, tail=True)
                costs.append(cost)
                bounds.append(bound)
        mean, allowed = self._mean(np.concatenate(costs), np.concatenate(bounds))
        if not mean <= allowed:  # or it is not a number
            what = (
                f"the head applied to the hidden states does not give top-k and tail (mean KL "
                f"{mean:.2g} nats over {sum(map(len, costs))} labels, at most {allowed:.1g} "
                "expected): it is the head of a different teacher, or has a different scale or "
                "vocabulary"
            )
            yield Finding(kind="states", where=HEAD_FILE, what=what)

    def _sample(self, number: int, decoded: DecodedLabels, stored: NDArray[Any]) -> _Sample:
        """Return the labels of some rows, each row up to the size of the sample."""
        rng = np.random.default_rng(number)
        sizes = np.diff(decoded.offsets)
        picked, left = [], SAMPLED
        for row in rng.permutation(np.flatnonzero(sizes)).tolist():
            count = min(int(sizes[row]), left)
            first = int(decoded.offsets[row] + rng.integers(sizes[row] - count + 1))
            picked.append(np.arange(first, first + count))
            left -= count
            if not left:
                break
        places = np.concatenate(picked)
        rows = np.searchsorted(decoded.offsets, places, side="right") - 1
        states = np.stack(
            [
                _rebuilt(stored[places, number], self.bases[layer])
                for number, layer in enumerate(self.layers)
            ],
            axis=1,
        )
        return _Sample(states, decoded.labels[places], rows)

    def _against_labels(self, head: StoredHead, sample: _Sample) -> Iterator[Finding]:
        """Compare the states of `final` with the top-k, and name another position or layer."""
        ids = _lookup(sample.labels, head.facts.valid_vocab)
        used, place = np.unique(ids, return_inverse=True)
        weight = head.rows_of(used)
        at = self.layers.index(FINAL)

        def cost(of: NDArray[np.intp], states: NDArray[np.float32]) -> tuple[float, float]:
            """Return the mean divergence of labels `of` from the head on states, and its limit."""
            known = head.capped(states @ weight.T, used)
            logits = np.take_along_axis(known, place.reshape(ids.shape)[of], 1).astype(np.float64)
            labels = sample.labels[of]
            noise = self._noise(logits)
            return self._mean(*_divergence(labels, logits, noise, self._codec, tail=False))

        everyone = np.arange(len(ids))
        mean, allowed = cost(everyone, sample.states[:, at])
        if mean <= LEAST:
            return
        for shift in (-1, 1):
            here = everyone[max(0, -shift) : len(ids) - max(0, shift)]
            here = here[sample.row[here] == sample.row[here + shift]]
            if len(here) and cost(here, sample.states[here + shift, at])[0] < CLEARLY * mean:
                what = (
                    f"the state of each label is stored at the label {shift:+d}: states are "
                    f"shifted by {shift:+d}"
                )
                yield Finding(kind="shift", what=what)
                return
        if mean <= allowed:
            return
        for number, layer in enumerate(self.layers):
            there, fits = cost(everyone, sample.states[:, number])
            if number != at and there < CLEARLY * mean and there <= fits:
                what = f"the states of {FINAL} are in column {layer}: layers are exchanged"
                yield Finding(kind="states", what=what)
                return
        what = (
            f"the head applied to them does not give the top-k (mean KL {mean:.2g} nats over "
            f"{len(ids)} labels, at most {allowed:.1g} expected): they are states of another layer "
            "or of other tokens, or the head is another teacher's"
        )
        yield Finding(kind="states", what=what)

    @property
    def _codec(self) -> str:
        return self.labels.manifest.rounding_codec

    def _noise(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the error [n, 1] that dtypes may cause in each logit."""
        dtype = self.labels.manifest.identity.head_dtype
        relative = DTYPE_ERRORS.get(dtype, max(DTYPE_ERRORS.values())) + HALF_ERROR
        return np.asarray(np.abs(logits).max(axis=1, keepdims=True, initial=1.0) * relative)

    def _mean(self, costs: NDArray[np.float64], bounds: NDArray[np.float64]) -> tuple[float, float]:
        """Return the mean divergence of labels, and the largest that their storage explains."""
        if not len(costs):
            return 0.0, 0.0
        record, basis = self.labels.states, self.bases.get(FINAL)
        lost = 0.0
        if basis is not None and record is not None:
            measured = [x for x in (record.kl_asked, record.kl_measured) if x is not None]
            lost = max(measured, default=0.06 * len(basis.mean) * basis.step**2)
        return float(costs.mean()), float(
            4 * bounds.mean() + (4 + PER_LABEL / len(costs)) * lost + LEAST
        )


def _divergence(
    labels: Labels,
    logits: NDArray[np.float64],
    noise: NDArray[np.float64],
    codec: str,
    *,
    tail: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the KL [n] of labels from logits at their ids, and what rounding explains of it.

    Args:
        labels: [n]; without `tail`, its distribution over the top-k alone counts, times its mass.
        logits: [n, k] of the top-k ids; with `tail`, logprobs.
        noise: error of a logit, [n, 1].
        codec: of the labels.
        tail: count it as one more outcome.
    """
    real = labels.topk_ids != PAD_ID
    stored = np.where(real, labels.topk_logprobs.astype(np.float64), -np.inf)
    slack = rounding(stored, codec)
    found = np.where(real, logits, -np.inf)
    if tail:
        stored = np.column_stack([stored, labels.tail_logprob.astype(np.float64)])
        rest = np.log1p(-np.minimum(np.exp(found).sum(axis=1), 1 - 1e-6))
        found = np.column_stack([found, rest])
        slack = np.column_stack([slack, rounding(labels.tail_logprob, PLAIN_1)])
    p = np.exp(np.minimum(stored, 0.0))
    total = p.sum(axis=1, keepdims=True)
    p = p / np.maximum(total, np.finfo(np.float64).tiny)
    found = found - np.logaddexp.reduce(found, axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (np.log(p) - found), 0.0)
    mass = np.minimum(total[:, 0], 1.0)
    costs = mass * np.maximum(terms.sum(axis=1), 0.0)
    return costs, mass * (p * (noise + slack) ** 2).sum(axis=1)


def _at_ids(logprobs: NDArray[np.float64], labels: Labels) -> NDArray[np.float64]:
    return np.take_along_axis(logprobs, _lookup(labels, logprobs.shape[1]), axis=1)


def _lookup(labels: Labels, vocab: int) -> NDArray[np.int64]:
    """Return ids [n, k] that a table of `vocab` rows has; labels without such ids are found."""
    return np.clip(labels.topk_ids, 0, vocab - 1).astype(np.int64)


def _rebuilt(stored: NDArray[Any], basis: StateBasis | None) -> NDArray[np.float32]:
    """Return states [n, d] of what is stored of one layer."""
    return stored.astype(np.float32) if basis is None else basis.states(stored)


def _is_inverse(basis: StateBasis) -> bool:
    """Check on a few directions that states come back from their coordinates."""
    probe = np.random.default_rng(0).normal(size=(4, len(basis.mean)))
    back = probe @ basis.analysis.astype(np.float64) @ basis.synthesis.astype(np.float64)
    return bool(np.abs(back - probe).max() < 1e-2)


def _damage(error: Exception, where: str) -> Finding:
    if isinstance(error, StoreError):  # nothing is known about the set
        raise error
    what, hint = getattr(error, "what", first_line(error)), getattr(error, "hint", None)
    return Finding(kind="damage", where=where, what=what, hint=hint)
