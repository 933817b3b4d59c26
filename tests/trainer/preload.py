"""Import what the trainer's commands import; see `tests.fork_server`."""

import importlib
import logging

NAMES = (
    "peft",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "trainer.cli",
    "trainer.evaluate.measure",
    "trainer.train.loop",
    "transformers.models.llama.modeling_llama",
)

for _name in ("torchao", "torch.utils._pytree"):  # as `trainer.cli.main` does
    logging.getLogger(_name).setLevel(logging.ERROR)
for _name in NAMES:
    importlib.import_module(_name)
