"""Whether a device multiplies in bfloat16, or only emulates it."""

from __future__ import annotations

import torch


def emulation_warning(device: torch.device) -> str | None:
    """Return a warning where products in bfloat16 are emulated, far slower than float32.

    A CPU with AVX2 alone took 6 to 7 times as long as in float32: oneDNN has no kernels for it, and
    PyTorch falls back to plain loops.

    Args:
        device: the device that a model runs on.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    else:
        native = True
    return None if native else f"this {device.type.upper()} emulates bf16, slowly: use --dtype fp32"
