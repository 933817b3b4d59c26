"""Write a checkpoint in int8 as vLLM reads it, by compressed-tensors.

W8A8: weights symmetric with one scale per output channel, activations one scale per token at run
time. No calibration data, and no groups that a layer's width would have to be a multiple of.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from schemas.errors import SoftshardsError
from schemas.json_values import parse_object
from trainer.export.provenance import Provenance
from trainer.student.load_model import stored_dtype
from trainer.student.save_model import save_model

SCHEME = "W8A8"


def check_compressed_tensors() -> None:
    """Check that the package compressed-tensors is installed.

    Raises:
        SoftshardsError: it is not.
    """
    try:
        import compressed_tensors  # noqa: F401
    except ImportError as error:
        raise SoftshardsError(
            "--to int8 needs the package compressed-tensors, which is not installed",
            hint="pip install 'softshards[export]'",
        ) from error


@torch.no_grad()
def write_int8(model: PreTrainedModel, source: Path, folder: Path, origin: Provenance) -> None:
    """Quantize every linear layer but the head, in place, and write the checkpoint.

    Args:
        model: the student, in float32.
        source: its folder, for the tokenizer.
        folder: to make or replace. What is not quantized is in bfloat16, or in the student's
            float16.
        origin: written into config.json.

    Raises:
        SoftshardsError: the model has weights to quantize that are in no `nn.Linear`.
    """
    from compressed_tensors.compressors import ModelCompressor, compress_module
    from compressed_tensors.quantization import (
        QuantizationConfig,
        QuantizationStatus,
        apply_quantization_config,
        preset_name_to_scheme,
    )
    from compressed_tensors.quantization.utils import calculate_qparams

    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    layers = _linear_layers(model, tables)
    left = [name for name, module in model.named_modules() if module in tables]
    scheme = preset_name_to_scheme(SCHEME, targets=["Linear"])
    arguments = scheme.weights
    assert arguments is not None
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=left)
    apply_quantization_config(model, config)
    compressor = ModelCompressor.from_pretrained_model(model)
    for layer in layers:
        lowest, highest = layer.weight.aminmax(dim=1, keepdim=True)
        scale, zero_point = calculate_qparams(lowest, highest, arguments)
        layer.get_parameter("weight_scale").copy_(scale)
        layer.get_parameter("weight_zero_point").copy_(zero_point)
        compress_module(layer)
    compressor.quantization_config.quantization_status = QuantizationStatus.COMPRESSED
    # In bfloat16 the scale of a whole channel would be off by up to 0.4 %.
    model._keep_in_fp32_modules_strict = {
        *(model._keep_in_fp32_modules_strict or ()),
        "weight_scale",
    }
    dtype = torch.float16 if stored_dtype(source) == torch.float16 else torch.bfloat16
    save_model(model, folder, source=source, tokenizer_dir=source, dtype=dtype)
    compressor.update_config(str(folder))
    path = folder / "config.json"
    content = parse_object(path.read_bytes()) | {"softshards": origin.as_metadata()}
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _linear_layers(model: PreTrainedModel, tables: tuple[nn.Module, nn.Module]) -> list[nn.Linear]:
    """Return the layers to quantize.

    Raises:
        SoftshardsError: other matrices do the same work, so vLLM would expect them in int8, too.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m not in tables]
    known = {id(layer.weight) for layer in layers}
    known |= {id(parameter) for table in tables for parameter in table.parameters()}
    known |= {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    others = [name for name, p in model.named_parameters() if p.ndim > 1 and id(p) not in known]
    if others or not layers:
        raise SoftshardsError(
            f"--to int8 quantizes linear layers, and {others[0] if others else 'the model'} is in "
            f"none: {type(model).__name__} cannot be exported in int8",
            hint="--to gguf:q8_0 has 8 bits, too",
        )
    return layers
