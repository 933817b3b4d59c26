import platform
from pathlib import Path

import pytest
import torch

from trainer.ops.bf16_support import emulation_warning


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the flags of an x86 CPU")
def test_a_cpu_without_wide_vectors_emulates_bf16() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    multiplies = {"avx512bw", "avx512vl", "avx512dq"} <= flags  # what oneDNN needs for bfloat16
    warning = emulation_warning(torch.device("cpu"))
    assert warning == (None if multiplies else "this CPU emulates bf16, slowly: use --dtype fp32")
