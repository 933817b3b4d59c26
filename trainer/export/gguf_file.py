"""Finish a GGUF file: provenance in its metadata, and weights in 8 or 4 bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from schemas.errors import SoftshardsError
from trainer.export.provenance import Provenance

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, ReaderTensor

Bits = Literal["f16", "q8_0", "q4_0"]
TABLES = ("token_embd.weight", "output.weight")
"""Embeddings and head: 8 bits in a file of 4 bits, as errors there reach every token."""
BLOCK = 32
"""Weights that share a scale in Q4_0 and Q8_0."""


def check_gguf() -> None:
    """Check that the package gguf is installed.

    Raises:
        SoftshardsError: it is not.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise SoftshardsError(
            "--to gguf needs the package gguf, which is not installed",
            hint="pip install 'softshards[export]'",
        ) from error


def finish_gguf(source: Path, target: Path, origin: Provenance, bits: Bits) -> None:
    """Copy a GGUF file with provenance; quantize what is in float16.

    With Q4_0, embeddings and head become Q8_0. Rows that are no multiple of 32 stay in float16.

    Raises:
        SoftshardsError: a weight is not finite in float16, which ends at 65504.
    """
    from gguf import GGUFReader, GGUFWriter

    reader = GGUFReader(source)
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    try:
        _copy_metadata(reader, writer, bits)
        for key, value in origin.as_metadata().items():
            writer.add_string(f"softshards.{key}", value)
        if origin.license and "general.license" not in reader.fields:
            writer.add_license(origin.license)
        kinds = [_stored_type(tensor, bits) for tensor in reader.tensors]
        for tensor, kind in zip(reader.tensors, kinds, strict=True):
            shape, size = _stored_shape(tensor, kind)
            writer.add_tensor_info(tensor.name, shape, tensor.data.dtype, size, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, kind in zip(reader.tensors, kinds, strict=True):
            writer.write_tensor_data(_stored_data(tensor, kind))
    finally:
        writer.close()


def _copy_metadata(reader: GGUFReader, writer: GGUFWriter, bits: Bits) -> None:
    from gguf import GGUFValueType, LlamaFileType

    for field in reader.fields.values():
        if field.name == "general.architecture" or field.name.startswith("GGUF."):
            continue  # the writer has written them
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        value = field.contents()
        if field.name == "general.file_type":
            value = int(LlamaFileType[f"MOSTLY_{bits.upper()}"])
        writer.add_key_value(field.name, value, kind, sub_type=inner)


def _stored_type(tensor: ReaderTensor, bits: Bits) -> GGMLQuantizationType:
    """Return the type of a weight in the file: the converter left in float16 what quantizes."""
    from gguf import GGMLQuantizationType

    kind = tensor.tensor_type
    if kind != GGMLQuantizationType.F16 or tensor.data.shape[-1] % BLOCK:
        return kind
    return GGMLQuantizationType[
        ("q8_0" if tensor.name in TABLES and bits == "q4_0" else bits).upper()
    ]


def _stored_shape(tensor: ReaderTensor, kind: GGMLQuantizationType) -> tuple[tuple[int, ...], int]:
    """Return shape and bytes of a weight in the file, as `add_tensor_info` takes them."""
    from gguf import quant_shape_to_byte_shape

    if kind == tensor.tensor_type:
        return tensor.data.shape, tensor.data.nbytes
    shape = tensor.data.shape
    return shape, int(np.prod(quant_shape_to_byte_shape(shape, kind)))


def _stored_data(tensor: ReaderTensor, kind: GGMLQuantizationType) -> NDArray[np.generic]:
    from gguf.quants import quantize

    if tensor.data.dtype == np.float16 and not np.isfinite(tensor.data).all():
        raise SoftshardsError(
            f"the weight {tensor.name} has values that float16 cannot hold (at most 65504)",
            hint="--to int8 keeps the range of bfloat16",
        )
    if kind == tensor.tensor_type:
        return tensor.data
    return np.asarray(quantize(tensor.data.astype(np.float32), kind))
