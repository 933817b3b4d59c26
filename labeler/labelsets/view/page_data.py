"""The page's data as JSON values: facts of the sets, the list of rows, one row's labels."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from labeler.labelsets.common.decode_rows import decode_rows
from labeler.labelsets.common.row_matching import require_same_tokenizer
from labeler.labelsets.common.vocabulary import Vocabulary, open_vocabulary
from labeler.labelsets.view.row_list import COLUMNS, FilterFacts, Listing, list_rows
from schemas import (
    PAD_ID,
    Labels,
    LabelSet,
    SoftshardsError,
    bucketed_entropy,
    open_label_set,
)
from schemas.divergence import diverge
from schemas.labeled_spans import SpanRecord, span_positions
from schemas.redact import redacted
from schemas.urls import last_part

SHORT = 1 << 16
"""Ids below this fit in two bytes, with one value left for padding."""


class SetFacts(TypedDict):
    """Facts of one label set from its manifest."""

    name: str
    path: NotRequired[str]
    view_of: str | None
    teacher: str | None
    mode: str
    k: int
    codec: str
    dtype: str
    head_dtype: str
    quantization: str | None
    vocab_size: int
    max_length: int
    sampling: dict[str, object] | None
    late_settings: dict[str, str]
    rows: int
    tokens: int
    labels: int
    bytes: int
    status: str
    format_version: str
    weights: str
    tokenizer: str
    chat_template: str | None
    identity_digest: str


class ViewerFacts(FilterFacts):
    """Facts of the sets shown, and the choices of the filters."""

    sets: list[SetFacts]
    matched: NotRequired[int]


class PackedLabels(TypedDict):
    """The labels of one row in one set, packed as `Viewer.row` describes."""

    at: list[int]
    k: int
    id_bytes: int
    topk_ids: str
    topk_logprobs: str
    tail_logprob: str
    token_logprob: str
    entropy: str
    entropy_is_exact: bool
    a_to_b: NotRequired[str]
    b_to_a: NotRequired[str]
    common_mass: NotRequired[str]


class RowContent(TypedDict):
    """One row as JSON values; it also has the row's COLUMNS, `parent_id` and `meta`."""

    number: int
    ids: list[int]
    joined: dict[int, str]
    spans: list[tuple[int, int, str]]
    sides: list[PackedLabels]
    diverges_at: NotRequired[int | None]


@dataclass(frozen=True)
class Viewer:
    """One label set, or two over the same rows, opened to be shown.

    Attributes:
        labels: the first set.
        other: the second one.
        paths: their paths or URLs, as given.
        vocabulary: their common vocabulary.
        listing: the rows of the first set.
    """

    labels: LabelSet
    other: LabelSet | None
    paths: tuple[Path | str, ...]
    vocabulary: Vocabulary
    listing: Listing

    @property
    def matched(self) -> int:
        """Number of rows that the second set has as well."""
        return 0 if self.other is None else self.listing.frame["row_b"].count()

    def facts(self) -> ViewerFacts:
        """Return the facts of the manifests and the choices of the filters."""
        opened = [labels for labels in (self.labels, self.other) if labels is not None]
        sets = [_set_facts(labels, path) for labels, path in zip(opened, self.paths)]
        filters = self.listing.facts()
        facts: ViewerFacts = {
            "sets": sets,
            "sources": filters["sources"],
            "finish_reasons": filters["finish_reasons"],
            "spreads": filters["spreads"],
        }
        if self.other is not None:
            facts["matched"] = self.matched
        return facts

    def row(self, number: int) -> RowContent:
        """Read a row with its labels from disk, verified.

        Labels are packed: arrays are base64 of little-endian numbers. `topk_ids` [n, k] has all
        bits set where a list is shorter, `topk_logprobs` [n, k] is float16, all others [n] are
        float32; `at` lists the n positions.

        Raises:
            SoftshardsError: the row does not exist, or its shard is altered.
        """
        if not 0 <= number < self.listing.frame.height:
            raise SoftshardsError(
                f"there is no row number {number}",
                path=self.labels.place,
                hint=f"rows are numbered 0 to {self.listing.frame.height - 1}",
            )
        place = self.listing.frame.row(number, named=True)
        ours = _read(self.labels, place["group"], place["row"])
        shown = {name: ours[name][0].as_py() for name in (*COLUMNS, "parent_id", "meta")}
        ids, at, spans = _tokens(ours)
        labels = decode_rows(ours).labels
        content: RowContent = {
            "number": number,
            "ids": ids.tolist(),
            "joined": self.vocabulary.join_fragments(ids.tolist()),
            "spans": spans,
            "sides": [_packed(labels, at, self._vocab_size)],
        }
        if self.other is not None and place["row_b"] is not None:
            theirs = _read(self.other, place["group_b"], place["row_b"])
            compared, content["diverges_at"] = self._compare(ids, at, labels, theirs)
            content["sides"].append(compared)
        return cast(RowContent, {**shown, **content})

    @property
    def _vocab_size(self) -> int:
        return self.labels.manifest.identity.vocab_size

    def _compare(
        self, ids: NDArray[np.int32], at: NDArray[np.int64], labels: Labels, theirs: pa.Table
    ) -> tuple[PackedLabels, int | None]:
        """Return the other set's labels, and the position where the rows diverge, if they do.

        The other set's labels are compared at the positions that both sets label after the same
        tokens. Two generations are compared up to the position where they diverge.
        """
        other_ids, other_at, _ = _tokens(theirs)
        length = min(len(ids), len(other_ids))
        same = ids[:length] == other_ids[:length]
        diverges_at = length if same.all() else int(np.argmin(same))
        shared, ours, others = np.intersect1d(at, other_at, return_indices=True)
        keep = shared <= diverges_at
        a, b = labels[ours[keep]], decode_rows(theirs).labels[others[keep]]
        found = diverge(a, b)
        compared: PackedLabels = {
            **_packed(b, shared[keep], self._vocab_size),
            "a_to_b": _floats(found.a_to_b),
            "b_to_a": _floats(found.b_to_a),
            "common_mass": _floats(found.common_mass),
        }
        equal = len(ids) == len(other_ids) == diverges_at
        return compared, None if equal else diverges_at


def open_viewer(
    path: Path | str, other: Path | str | None = None, *, allow_partial: bool = False
) -> Viewer:
    """Open one label set, or two with the same tokenizer, and list the rows of the first.

    Raises:
        SoftshardsError: a set cannot be opened, or their tokenizers differ.
    """
    labels = open_label_set(path, allow_partial=allow_partial)
    second = None if other is None else open_label_set(other, allow_partial=allow_partial)
    if second is not None:
        require_same_tokenizer(labels, second)
    vocabulary = open_vocabulary(labels.tokenizer_dir, labels.manifest.identity.vocab_size)
    paths = (path,) if other is None else (path, other)
    return Viewer(labels, second, paths, vocabulary, list_rows(labels, second, vocabulary))


def _set_facts(labels: LabelSet, path: Path | str) -> SetFacts:
    manifest, identity = labels.manifest, labels.manifest.identity
    return {
        "name": last_part(path),
        "path": redacted(str(path)),
        "view_of": None if labels.view is None else last_part(labels.place),
        "teacher": manifest.provenance.get("teacher"),
        "mode": identity.mode,
        "k": identity.k,
        "codec": manifest.codec,
        "dtype": identity.dtype,
        "head_dtype": identity.head_dtype,
        "quantization": identity.quantization,
        "vocab_size": identity.vocab_size,
        "max_length": identity.max_length,
        "sampling": None if identity.sampling is None else identity.sampling.model_dump(),
        "late_settings": identity.late_settings,
        "rows": labels.rows,
        "tokens": labels.tokens,
        "labels": labels.labels,
        "bytes": labels.stored_bytes,
        "status": manifest.status,
        "format_version": manifest.format_version,
        "weights": identity.weights,
        "tokenizer": identity.tokenizer,
        "chat_template": identity.chat_template,
        "identity_digest": manifest.identity_digest,
    }


def _read(labels: LabelSet, group: int, row: int) -> pa.Table:
    """Read one row as a table; its row group's bytes are hashed."""
    return labels.read_row_group(labels.row_groups[group]).slice(row, 1)


def _tokens(
    row: pa.Table,
) -> tuple[NDArray[np.int32], NDArray[np.int64], list[tuple[int, int, str]]]:
    """Return a row's token ids, its labeled positions, and its spans as (start, stop, kind)."""
    records: list[SpanRecord] = row["spans"][0].as_py()
    spans = [(span["start"], span["stop"], span["kind"]) for span in records]
    ids = np.asarray(row["input_ids"][0].as_py(), np.int32)
    return ids, span_positions(records), spans


def _packed(labels: Labels, at: NDArray[np.int64], vocab_size: int) -> PackedLabels:
    """Pack labels as `Viewer.row` describes."""
    kind = "<u2" if vocab_size < SHORT else "<u4"
    ids = np.where(labels.topk_ids == PAD_ID, np.iinfo(kind).max, labels.topk_ids)
    entropy = labels.entropy
    return {
        "at": at.tolist(),
        "k": labels.topk_ids.shape[1],
        "id_bytes": np.dtype(kind).itemsize,
        "topk_ids": _base64(ids.astype(kind)),
        "topk_logprobs": _base64(labels.topk_logprobs.astype("<f2")),
        "tail_logprob": _floats(labels.tail_logprob),
        "token_logprob": _floats(labels.token_logprob),
        "entropy": _floats(bucketed_entropy(labels) if entropy is None else entropy),
        "entropy_is_exact": entropy is not None,
    }


def stored_ids(side: PackedLabels) -> list[int]:
    """Return the distinct token ids in a side's packed `topk_ids`."""
    kind = np.dtype(f"<u{side['id_bytes']}")
    ids = np.unique(np.frombuffer(base64.b64decode(side["topk_ids"]), kind))
    found: list[int] = ids[ids != np.iinfo(kind).max].tolist()
    return found


def _floats(values: NDArray[np.generic]) -> str:
    return _base64(np.asarray(values, "<f4"))


def _base64(array: NDArray[np.generic]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
