"""Low-rank adapters by peft: train r (d_in + d_out) numbers per matrix instead of d_in x d_out.

W + (alpha / r) B A with A [r, d_in], B [d_out, r] (Hu et al., arXiv 2106.09685)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.errors import SoftshardsError

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

ALL = "all-linear"


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The adapters of a student.

    Attributes:
        targets: names of the layers to adapt, or ALL alone for every linear layer but the head.
        seed: of the random A.
    """

    rank: int
    alpha: int
    targets: tuple[str, ...]
    seed: int


def add_lora(model: PreTrainedModel, settings: LoraSettings) -> PeftModel:
    """Put adapters into a model, in place, and freeze the rest. B is zero: the output stays.

    Returns:
        The wrapper of peft around the model, for merging and saving.

    Raises:
        SoftshardsError: peft is missing, or --lora-targets names no layer of the model.
    """
    import torch

    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise SoftshardsError(
            "--lora-r needs peft, which is not installed", hint="pip install 'softshards[lora]'"
        ) from error
    targets = list(settings.targets)
    for target in targets:
        if _is_tied(model, target):
            raise SoftshardsError(
                f"--lora-targets {target}: the head is tied to the embeddings and neither can "
                "change alone",
                hint=f"leave {target} out of --lora-targets",
            )
    torch.manual_seed(settings.seed)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=ALL if targets == [ALL] else targets,
        task_type="CAUSAL_LM",
    )
    try:
        wrapper: PeftModel = get_peft_model(model, config)
    except ValueError as error:
        raise SoftshardsError(
            f"--lora-targets {' '.join(targets)}: {str(error).splitlines()[0]}",
            hint=f"name linear layers of the student, such as q_proj and down_proj, or {ALL}",
        ) from error
    return wrapper


def _is_tied(model: PreTrainedModel, target: str) -> bool:
    """Return whether a target is the head or the embeddings, and they share their weights."""
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    if tables[0] is None or tables[1] is None or tables[0].weight is not tables[1].weight:
        return False
    names = [name for name, module in model.named_modules() if module in tables]
    return any(f".{name}".endswith(f".{target}") for name in names)


def merge_lora(
    base: PreTrainedModel, settings: LoraSettings, state: Mapping[str, Tensor]
) -> tuple[PreTrainedModel, Callable[[Path], None]]:
    """Return a model with trained adapters merged into its weights, and a writer of the adapters.

    Args:
        base: the student as it was before training.
        state: the adapters' weights, by their names in the student.

    Returns:
        The merged model, and a function that writes the adapters alone to a new folder.
    """
    wrapper = add_lora(base, settings)
    wrapper.get_base_model().load_state_dict(state, strict=False)
    from peft import get_peft_model_state_dict

    adapters = {name: value.clone() for name, value in get_peft_model_state_dict(wrapper).items()}
    config = wrapper.peft_config["default"]

    def write_adapters(folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir()
        save_file(adapters, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(str(folder))

    merged: PreTrainedModel = wrapper.merge_and_unload()
    return merged, write_adapters
