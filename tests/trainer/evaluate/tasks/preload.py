"""Import what the process of the tasks imports; see `tests.fork_server`."""

import importlib
import logging

for _name in ("torchao", "torch.utils._pytree", "lm_eval", "lm-eval"):  # as the process does
    logging.getLogger(_name).setLevel(logging.ERROR)
for _name in (
    "lm_eval.evaluator",
    "lm_eval.models.huggingface",
    "lm_eval.tasks",
    "transformers.models.llama.modeling_llama",
):
    importlib.import_module(_name)
