"""Loading the engine that the settings name, with its imports."""

from __future__ import annotations

from labeler.console import err
from labeler.labeling.engines.engine import Engine
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.teacher.teacher import Teacher
from schemas import Identity, SoftshardsError
from schemas.asked_ids import asked_count


def load_engine(
    teacher: Teacher, config: LabelConfig, identity: Identity, *, batched_tokens: int
) -> Engine:
    """Load `config.engine`, with steps of at most `batched_tokens`.

    Raises:
        SoftshardsError: it cannot be loaded, or runs the teacher in another dtype than recorded.
    """
    if config.engine != "served" and (warning := emulation_warning(identity.dtype)):
        err.print(f"warning: {warning}", style="yellow")
    engine: Engine
    if config.engine == "vllm":
        from labeler.labeling.engines.vllm.vllm_engine import VllmEngine

        engine = VllmEngine(
            teacher,
            config,
            dtype=identity.dtype,
            k=identity.k,
            batched_tokens=batched_tokens,
        )
    elif config.engine == "served":
        from labeler.labeling.engines.served.served_engine import ServedEngine

        engine = ServedEngine(
            teacher,
            config,
            dtype=identity.dtype,
            head_dtype=identity.head_dtype,
            k=identity.k,
        )
    else:
        from labeler.labeling.engines.transformers_engine import TransformersEngine

        engine = TransformersEngine(
            teacher,
            dtype=identity.dtype,
            head_dtype=identity.head_dtype,
            k=identity.k,
            sampling=config.sampling,
            draws=config.draws,
            states=config.state_layers,
            asked=asked_count(config.ids_from),
            temperatures=config.label_temperatures,
        )
    facts = engine.facts
    if (facts.dtype, facts.head_dtype) != (identity.dtype, identity.head_dtype):
        engine.close()
        raise SoftshardsError(
            f"the engine runs the teacher in {facts.dtype} with a {facts.head_dtype} head, "
            f"but the settings ask for {identity.dtype} and {identity.head_dtype}",
            hint="pass --head-dtype model, or another --dtype",
        )
    return engine


def emulation_warning(dtype: str) -> str | None:
    """Return a warning where this machine only emulates products in bfloat16, far slower.

    `trainer.ops.bf16_support` asks the same of PyTorch: neither package may import the other, nor
    the one that they share import torch.
    """
    if dtype != "bfloat16":
        return None
    import torch

    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return None if native else "this machine emulates bfloat16, slowly: use --dtype float32"
