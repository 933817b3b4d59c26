"""`head/`: a teacher's output projection and the bases of its hidden states, checked before use.

They may come from strangers: names, sizes, shapes, digests and finiteness are checked. Both are
safetensors files. Weights of any dtype are mapped, and read as float32 without a tensor library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from schemas.atomic import write_atomic
from schemas.errors import LabelSetError, first_line
from schemas.file_names import HEAD_FILE, basis_name
from schemas.fingerprint import sha256_file
from schemas.hidden_part import RESTORE
from schemas.manifest import FileDigest, Manifest, Model
from schemas.set_paths import set_file
from schemas.size_limits import LARGEST_VOCABULARY
from schemas.state_codec import StateBasis

METADATA_KEY = "softshards"
"""Key of the JSON object in the metadata of `head.safetensors`."""
CHUNK_BYTES = 1 << 25
"""Weights that are checked or multiplied at a time, as float32."""
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class HeadFacts(Model):
    """What the metadata of `head.safetensors` states.

    Logits are softcap * tanh(scale * (weight h + bias) / softcap), of the first `valid_vocab` ids.
    """

    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    softcap: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    valid_vocab: Annotated[int, Field(ge=1, le=LARGEST_VOCABULARY)]

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata to write `head.safetensors` with, beside tensors `weight` and `bias`."""
        return {METADATA_KEY: self.model_dump_json()}


@dataclass(frozen=True, kw_only=True)
class StoredHead:
    """A checked `head.safetensors`.

    Attributes:
        path: the file.
        facts: scale, soft cap and vocabulary.
        weight: [V, d], V >= valid_vocab, mapped; bfloat16 as its bits in uint16.
        bias: float32 [V], or None.
    """

    path: Path
    facts: HeadFacts
    weight: NDArray[Any]
    bias: NDArray[np.float32] | None

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows [start, stop) of the weight, float32."""
        return _float32(self.weight[start:stop])

    def rows_of(self, ids: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the rows of the weight of some ids, float32 [n, d]."""
        return _float32(self.weight[ids])

    def capped(
        self, products: NDArray[np.float32], ids: NDArray[np.integer] | slice
    ) -> NDArray[np.float32]:
        """Return the logits [n, ids] of `states @ rows_of(ids).T`: bias, scale and soft cap."""
        found = products if self.bias is None else products + self.bias[ids]
        found = found * np.float32(self.facts.scale)
        if (cap := self.facts.softcap) is not None:
            found = np.float32(cap) * np.tanh(found / np.float32(cap))
        return found

    def chunks(self, stop: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield the weight of ids below `stop` some rows at a time, each with its first id."""
        size = max(1, CHUNK_BYTES // (4 * self.weight.shape[1]))
        for start in range(0, stop, size):
            yield start, self.rows(start, min(start + size, stop))

    def logits(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return float32 [n, V] of states [n, d], padding included; keep n small."""
        found = np.empty((len(states), len(self.weight)), np.float32)
        for start, weight in self.chunks(len(self.weight)):
            found[:, start : start + len(weight)] = states @ weight.T
        return self.capped(found, slice(None))


def write_basis(directory: Path, layer: str, basis: StateBasis) -> FileDigest:
    """Write the basis of a layer into a set, and return the file for `StatesRecord.files`."""
    from safetensors.numpy import save

    tensors = {
        "mean": basis.mean,
        "analysis": basis.analysis,
        "synthesis": basis.synthesis,
        "step": np.array([basis.step], np.float32),
    }
    arrays = {name: np.ascontiguousarray(x, np.float32) for name, x in tensors.items()}
    name = basis_name(layer)
    write_atomic(directory / name, save(arrays))
    return FileDigest(path=name, sha256=sha256_file(directory / name))


def read_basis(directory: Path, manifest: Manifest, layer: str) -> StateBasis | None:
    """Return the basis of a layer; None where the states are stored without one.

    Raises:
        LabelSetError: the file is missing, altered, or not a basis of this width.
    """
    states = manifest.states
    file = None if states is None else states.file(basis_name(layer))
    if states is None or file is None:
        return None
    d = states.dimensions
    path = checked_file(directory, file)
    try:
        tensors, _ = _open(path)
        shapes = {"mean": (d,), "analysis": (d, d), "synthesis": (d, d), "step": (1,)}
        if {name: x.shape for name, x in tensors.items()} != shapes:
            raise ValueError(f"its tensors are not those of a basis of {d} dimensions")
        if any(x.dtype != np.float32 for x in tensors.values()):
            raise ValueError("its tensors are not float32")
        if not all(np.isfinite(x).all() for x in tensors.values()) or not tensors["step"][0] > 0:
            raise ValueError("a value is not finite, or the step is not above 0")
    except (ValueError, OSError) as error:
        raise LabelSetError(f"not a basis of hidden states: {first_line(error)}", path=path) from (
            error
        )
    arrays = {name: np.array(tensors[name]) for name in ("mean", "analysis", "synthesis")}
    return StateBasis(**arrays, step=float(tensors["step"][0]))


def read_head(directory: Path, manifest: Manifest) -> StoredHead:
    """Check the teacher's head in a set, and map it.

    Raises:
        LabelSetError: the set has none, or it is missing, altered, or does not fit the set.
    """
    states = manifest.states
    file = None if states is None else states.file(HEAD_FILE)
    if states is None or file is None:
        raise LabelSetError("the set has no teacher's head", path=directory)
    path = checked_file(directory, file)
    try:
        return _head(path, states.dimensions, manifest.identity.vocab_size)
    except (ValueError, OSError) as error:
        raise LabelSetError(f"not the teacher's head: {first_line(error)}", path=path) from error


def _head(path: Path, dimensions: int, vocab_size: int) -> StoredHead:
    """Map a head, and check its shapes and that it is finite.

    Raises:
        ValueError, OSError: it is not a head of these sizes.
    """
    tensors, metadata = _open(path)
    facts = HeadFacts.model_validate_json(metadata.get(METADATA_KEY, ""))
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if weight is None or weight.ndim != 2 or weight.shape[1] != dimensions:
        raise ValueError(f"it has no weight of {dimensions} columns")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError("weight and bias differ in length")
    if set(tensors) - {"weight", "bias"}:
        raise ValueError("it has tensors besides weight and bias")
    if facts.valid_vocab != vocab_size or len(weight) < vocab_size:
        raise ValueError(
            f"it has {len(weight)} rows and {facts.valid_vocab} ids, the set has {vocab_size} ids"
        )
    head = StoredHead(
        path=path, facts=facts, weight=weight, bias=None if bias is None else _float32(bias)
    )
    finite = head.bias is None or bool(np.isfinite(head.bias).all())
    if not finite or not all(
        np.isfinite(part).all() for _, part in head.chunks(head.facts.valid_vocab)
    ):
        raise ValueError("a weight is not finite")
    return head


def checked_file(directory: Path, file: FileDigest) -> Path:
    """Return the path of a file of the set after comparing its digest.

    Raises:
        LabelSetError: it is missing, a link, or altered.
    """
    path = set_file(directory, file.path)
    if not path.is_file():
        raise LabelSetError("a file of the hidden states is missing", path=path, hint=RESTORE)
    if sha256_file(path) != file.sha256:
        raise LabelSetError("a file of the hidden states was altered", path=path, hint=RESTORE)
    return path


def _open(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Map the tensors of a safetensors file, and return its metadata.

    Raises:
        ValueError, OSError: it is not one, or holds a dtype that a head cannot have.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:  # refuses sizes that do not fit the file
            metadata = dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(first_line(error)) from error
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    tensors: dict[str, NDArray[Any]] = {}
    for name, facts in header.items():
        if name == "__metadata__":
            continue
        if facts["dtype"] not in DTYPES:
            raise ValueError(f"tensor {name} has the dtype {facts['dtype']}")
        shape = tuple(facts["shape"])
        if math.prod(shape) == 0:
            raise ValueError(f"tensor {name} is empty")
        at = 8 + length + facts["data_offsets"][0]
        tensors[name] = np.memmap(path, DTYPES[facts["dtype"]], "r", at, shape)
    return tensors, metadata


def _float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return values as float32; uint16 holds the bits of bfloat16, which are its upper half."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(values, np.float32)
