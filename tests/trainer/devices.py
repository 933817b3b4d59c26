"""The devices that tests run on: always the CPU, and a GPU where there is one."""

from __future__ import annotations

import pytest
import torch

HAS_GPU = torch.cuda.is_available()

_cuda = pytest.mark.skipif(not HAS_GPU, reason="torch sees no GPU")
_cpu = pytest.mark.skipif(HAS_GPU, reason="the trainer takes the GPU")

DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, _cuda])]
"""For tests that place their tensors themselves."""

TRAINED_ON = [
    pytest.param("cpu", marks=_cpu),
    pytest.param("cuda", marks=[pytest.mark.gpu, _cuda]),
]
"""For tests of commands, which take the GPU where there is one."""
