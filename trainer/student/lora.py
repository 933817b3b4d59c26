"""Low-rank adapters by peft: train r (d_in + d_out) numbers a matrix instead of d_in x d_out.

W + (alpha / r) B A with A [r, d_in], B [d_out, r] (Hu et al., arXiv 2106.09685)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from schemas.errors import SoftshardsError
from trainer.train.train_config import TrainConfig

ADAPTER = "adapter"
ALL = "all-linear"


def add_lora(model: PreTrainedModel, config: TrainConfig) -> Any:
    """Put adapters into a model, in place, and freeze the rest; B is zero, so nothing changes yet.

    Returns:
        peft's wrapper around the model, for merging and saving.

    Raises:
        SoftshardsError: peft is missing, or --lora-targets names no layer of the model.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise SoftshardsError(
            "--lora-r needs peft, which is not installed", hint="pip install 'softshards[lora]'"
        ) from error
    targets = list(config.lora_targets)
    if "lm_head" in targets and model.config.get_text_config().tie_word_embeddings:
        raise SoftshardsError(
            "--lora-targets lm_head: the head is tied to the embeddings, and cannot change alone",
            hint="leave lm_head out of --lora-targets",
        )
    torch.manual_seed(config.seed)
    settings = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha or 2 * config.lora_r,
        target_modules=ALL if targets == [ALL] else targets,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, settings)
    except ValueError as error:
        raise SoftshardsError(
            f"--lora-targets {' '.join(targets)}: {str(error).splitlines()[0]}",
            hint=f"name linear layers of the student, such as q_proj and down_proj, or {ALL}",
        ) from error


def merged(
    base: PreTrainedModel, config: TrainConfig, state: dict[str, Any]
) -> tuple[PreTrainedModel, Callable[[Path], None]]:
    """A model with trained adapters merged into its weights, and what saves the adapters alone.

    Args:
        base: the student as it was before training.
        state: the adapters' weights, by their names in the student.
    """
    wrapper = add_lora(base, config)
    wrapper.get_base_model().load_state_dict(state, strict=False)
    from peft import get_peft_model_state_dict

    adapters = {name: value.clone() for name, value in get_peft_model_state_dict(wrapper).items()}
    settings = wrapper.peft_config["default"]

    def save(folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir()
        save_file(adapters, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        settings.save_pretrained(folder)

    return wrapper.merge_and_unload(), save
