"""Import what the labeler's commands import, vLLM's engine included; see `tests.fork_server`."""

import gc
import importlib
import os

from labeler.labeling.engines.vllm.vllm_load import import_vllm

NAMES = (
    "labeler.cli",
    "labeler.labeling.engines.transformers_engine",
    "labeler.labeling.runs.label_run",
    "pandas",
    "sympy.physics",
    "vllm.model_executor.models.llama",
    "vllm.v1.worker.cpu_worker",
)

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as `labeler.cli.main` does
_ = import_vllm().LLM  # imported at this access
for _name in NAMES:
    importlib.import_module(_name)
# vLLM looks for garbage when it ends, in all that the server froze, too: 1.4 s of processor time.
vars(gc)["unfreeze"] = lambda: None
if "SOFTSHARDS_TEST_OUT_IN_STORE" in os.environ:
    import pytest

    from tests.out_in_store import install

    install(pytest.MonkeyPatch())
