"""The loss that balances the experts of a mixture, as transformers computes it for the model.

    E sum_e f_e P_e    (Switch Transformer, Fedus et al., arXiv 2101.03961, equations 4 to 6)

E experts, f_e the share of tokens that go to expert e times the experts per token, P_e the mean of
its router probability; over the tokens of a batch and all layers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from schemas.errors import SoftshardsError, first_line
from trainer.student.layers import model_body

CHECK_TOKENS = 16
TOLERANCE = 1e-4

RouterLoss = Callable[..., Any]
"""transformers' load_balancing_loss_func(router_logits, experts, top_k, attention_mask)."""


def find_router_loss(model: PreTrainedModel) -> RouterLoss | None:
    """Return the function that a model's own loss uses; None for models without."""
    if not getattr(model, "num_experts", 0) or not hasattr(model, "num_experts_per_tok"):
        return None
    module = sys.modules.get(type(model).__module__)
    function: RouterLoss | None = getattr(module, "load_balancing_loss_func", None)
    return function


def router_loss(model: PreTrainedModel, outputs: Any, real: Tensor | None) -> Tensor:
    """Return the loss of a batch, a scalar with gradient.

    Args:
        model: the causal LM.
        outputs: of its body, run with `output_router_logits`.
        real: bool [documents, longest], False at padding, which does not count; None if packed.
    """
    function = find_router_loss(model)
    assert function is not None
    mask = None if real is None else real.long()
    loss: Tensor = function(
        outputs.router_logits, model.num_experts, model.num_experts_per_tok, mask
    )
    return loss


@torch.no_grad()
def check_router_loss(model: PreTrainedModel, vocab: int) -> None:
    """Check that the loss of some tokens is the auxiliary loss that the model itself returns.

    Raises:
        SoftshardsError: the model has no such loss, or it is computed otherwise.
    """
    if find_router_loss(model) is None:
        raise SoftshardsError(
            f"--loss router: transformers has no such loss for {type(model).__name__}",
            hint="leave router out of --loss",
        )
    ids = torch.arange(CHECK_TOKENS)[None] * 7919 % vocab
    inputs = {"input_ids": ids, "use_cache": False, "output_router_logits": True}
    training = model.training
    model.eval()
    try:
        gap = abs(
            float(router_loss(model, model_body(model)(**inputs), None))
            - float(model(**inputs).aux_loss)
        )
    except Exception as error:  # code of any architecture
        raise SoftshardsError(
            f"--loss router: the loss of {type(model).__name__} fails with "
            f"{type(error).__name__}: {first_line(error)}",
            hint="leave router out of --loss",
        ) from error
    finally:
        model.train(training)
    if not gap < TOLERANCE:
        raise SoftshardsError(
            f"--loss router: {type(model).__name__} computes it in a way that is not supported",
            hint="leave router out of --loss",
        )
