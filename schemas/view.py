"""A view: a small file that names rows of a label set, for use wherever a label set is.

It copies nothing. Rows are named by row group, as one bit a row, under the hash of the row group's
bytes: a view of a set that has changed meanwhile is refused, one of a set that has grown is not.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from schemas.atomic import write_atomic
from schemas.errors import LabelSetError
from schemas.fingerprint import sha256_json
from schemas.manifest import Model, check_version
from schemas.version import FORMAT_VERSION

if TYPE_CHECKING:
    from schemas.labelset import RowGroup

VIEW_SUFFIX = ".view.json"


class Kept(Model):
    """What a view keeps of one row group.

    Attributes:
        shard, row_group: which one; sha256: the hash of its bytes.
        rows, labels, tokens: sums over the rows kept.
        bits: base64 of one bit a row, the first row in the highest bit of the first byte.
    """

    shard: str
    row_group: int
    sha256: str
    rows: int
    labels: int
    tokens: int
    bits: str

    @classmethod
    def of(
        cls,
        group: RowGroup,
        mask: NDArray[np.bool_],
        *,
        n_labels: NDArray[np.integer],
        n_tokens: NDArray[np.integer],
    ) -> Kept:
        """What is kept of a row group, or of the rows that a view has of it.

        Args:
            group: the row group.
            mask: bool [group.rows], which of its rows.
            n_labels, n_tokens: of its rows, [group.rows] each.
        """
        stored = group.bytes.rows
        bits = np.ones(stored, bool) if group.kept is None else group.kept.mask(stored)
        bits[bits] = mask
        return cls(
            shard=group.shard,
            row_group=group.index,
            sha256=group.bytes.sha256,
            rows=int(mask.sum()),
            labels=int(n_labels[mask].sum()),
            tokens=int(n_tokens[mask].sum()),
            bits=packed_bits(bits),
        )

    def mask(self, rows: int) -> NDArray[np.bool_]:
        """Which of the row group's `rows` rows are kept, bool [rows].

        Raises:
            ValueError: the bits are not those of so many rows.
        """
        packed = np.frombuffer(base64.b64decode(self.bits, validate=True), np.uint8)
        mask = np.unpackbits(packed).astype(bool)
        if len(packed) != -(-rows // 8) or mask[rows:].any() or mask.sum() != self.rows:
            raise ValueError(f"the view's bits are not those of {rows} rows")
        return mask[:rows]


class View(Model):
    """The file. `made` says how: the rules with what each removed, for people."""

    kind: Literal["view"] = "view"
    format_version: str = FORMAT_VERSION
    label_set: str
    identity_digest: str
    kept: tuple[Kept, ...]
    made: dict[str, Any]
    self_digest: str = ""

    def sealed(self) -> View:
        """The same view with its own digest filled in."""
        content = self.model_dump(mode="json") | {"self_digest": ""}
        return self.model_copy(update={"self_digest": sha256_json(content)})


def packed_bits(mask: NDArray[np.bool_]) -> str:
    """`Kept.bits` of a mask, bool [rows]."""
    return base64.b64encode(np.packbits(mask).tobytes()).decode()


def write_view(path: Path, view: View) -> None:
    """Write a view atomically, sealed. Its `label_set` is a path, relative to the file's folder."""
    write_atomic(path, view.sealed().model_dump_json(indent=1) + "\n")


def read_view(path: Path) -> View:
    """Read and check a view; whether its rows exist is checked when the set is opened.

    Raises:
        LabelSetError: it is no view, was altered, or is of an unknown version.
    """
    hint = "give the folder of a label set, or make the view again with `labeler curate`"
    try:
        view = View.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        what = ": ".join(["not a view of a label set", *map(str, first["loc"]), first["msg"]])
        raise LabelSetError(what, path=path, hint=hint) from error
    check_version(view.format_version, path)
    if view.sealed().self_digest != view.self_digest:
        raise LabelSetError("the view was altered: its digest differs", path=path, hint=hint)
    return view
