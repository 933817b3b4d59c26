"""What is minimized: a weighted sum of losses, over labels that may count unequally."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor

from trainer import losses
from trainer.data.collate import Batch
from trainer.losses.renormalized_kl import WARNING
from trainer.train.loss_terms import LossTerm, TokenWeighting
from trainer.train.train_config import TrainConfig


class StudentOutput(NamedTuple):
    """What a student says at n labels, natural logarithms.

    Attributes:
        logp: [n, k] of the top-k ids. log_rest: [n], of the mass outside them.
        target_logp: [n], of the actual tokens.
        drawn_logp: [n, m] of the ids that were drawn, where the batch has any.
    """

    logp: Tensor
    log_rest: Tensor
    target_logp: Tensor
    drawn_logp: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Losses with their weights over the steps, and how much each label counts."""

    terms: tuple[LossTerm, ...]
    weighting: TokenWeighting = field(default_factory=TokenWeighting)
    temperature: float = 1.0
    jsd_beta: float = 0.5
    skew_alpha: float = 0.1

    @property
    def needs_draws(self) -> bool:
        """Whether a loss is over ids that were drawn from the teacher."""
        return any(term.name == "sampled" for term in self.terms)

    @property
    def warnings(self) -> list[str]:
        """What whoever chose these losses should know."""
        return [WARNING] if any(t.name == "renormalized_kl" for t in self.terms) else []


def objective_of(config: TrainConfig) -> Objective:
    """The objective that a run's flags describe."""
    return Objective(
        terms=config.loss_terms,
        weighting=config.token_weighting,
        temperature=config.temperature,
        jsd_beta=config.jsd_beta,
        skew_alpha=config.skew_alpha,
    )


def label_losses(output: StudentOutput, batch: Batch) -> tuple[Tensor, Tensor]:
    """What is reported whatever is minimized, each [n] in nats: forward KL and cross-entropy."""
    teacher = (batch.topk_logprobs, batch.tail_logprob)
    kl = losses.forward_kl(*teacher, output.logp, output.log_rest)
    return kl, losses.cross_entropy(output.target_logp)


def token_weights(weighting: TokenWeighting, batch: Batch) -> Tensor:
    """How much each label of a batch counts: float32 [n], 0 or more."""
    weights = torch.ones_like(batch.tail_logprob)
    if weighting.uniform:
        return weights
    weights = weights * weights.new_tensor(weighting.kinds)[batch.kinds]
    if weighting.sources:
        by_row = [_source_weight(weighting, source) for source in batch.sources]
        weights = weights * weights.new_tensor(by_row)[batch.documents]
    if weighting.entropy:
        teacher = torch.cat([batch.topk_logprobs, batch.tail_logprob[:, None]], 1)
        entropy = torch.special.entr(teacher.exp()).sum(1)
        share = entropy / math.log(teacher.shape[1])
        weights = weights * (1 + weighting.entropy * share).clamp_min(0)
    start, length = weighting.position
    context = batch.position_ids[0, batch.rows] + 1
    return weights * (start + (1 - start) * (context / length).clamp_max(1))


def batch_loss(
    objective: Objective,
    output: StudentOutput,
    batch: Batch,
    weights: Tensor,
    factors: list[float],
) -> tuple[Tensor, Tensor]:
    """The loss of a batch, and its parts, as sums over labels.

    Divided by the step's sum of weights (over all micro-batches and ranks) the loss is the step's.
    A term whose factor is 0 is left out, not multiplied by 0: it is still reported, but neither
    costs a backward pass nor could its infinities reach the gradient.

    Args:
        weights: [n] of `token_weights`.
        factors: weight of each term at this step.

    Returns:
        The loss, and [2 + terms] without gradient: KL and CE of `label_losses`, unweighted, then
        each term's sum of weights times losses.
    """
    kl, ce = label_losses(output, batch)
    known = {"forward_kl": kl, "ce": ce}
    parts: list[Tensor] = []
    sums = [kl.detach().sum(), ce.detach().sum()]
    for term, factor in zip(objective.terms, factors, strict=True):
        with torch.set_grad_enabled(torch.is_grad_enabled() and factor != 0):
            values = known.get(term.name)
            if values is None:
                values = _divergence(term.name, objective, output, batch)
            total = _weighted(values, weights).sum()
        sums.append(total.detach())
        if factor:
            parts.append(factor * total)
    # A step in which nothing counts (a schedule that starts at 0) still runs its backward pass.
    loss = sum(parts[1:], parts[0]) if parts else 0 * torch.nan_to_num(output.target_logp).sum()
    return loss, torch.stack(sums)


def _weighted(values: Tensor, weights: Tensor) -> Tensor:
    """The product, in which a label of weight 0 has no part even where its loss is infinite."""
    return weights * values.masked_fill(weights == 0, 0)


def _divergence(name: str, objective: Objective, output: StudentOutput, batch: Batch) -> Tensor:
    logp, log_rest = output.logp, output.log_rest
    if name == "sampled":
        if output.drawn_logp is None or batch.drawn_counts is None:
            raise ValueError("the batch has no drawn ids")
        return losses.sampled_cross_entropy(batch.drawn_counts, output.drawn_logp)
    if name == "renormalized_kl":
        temperature = objective.temperature
        return losses.renormalized_kl(batch.topk_logprobs, logp, temperature=temperature)
    buckets = (batch.topk_logprobs, batch.tail_logprob, logp, log_rest)
    match name:
        case "reverse_kl":
            return losses.reverse_kl(*buckets)
        case "jsd":
            return losses.jsd(*buckets, beta=objective.jsd_beta)
        case "skew_kl":
            return losses.skew_kl(*buckets, alpha=objective.skew_alpha)
        case "skew_reverse_kl":
            return losses.skew_reverse_kl(*buckets, alpha=objective.skew_alpha)
        case "tvd":
            return losses.tvd(*buckets)
    raise ValueError(f"there is no loss {name!r}")


def _source_weight(weighting: TokenWeighting, source: str) -> float:
    fits = (weight for pattern, weight in weighting.sources if fnmatchcase(source, pattern))
    return next(fits, 1.0)
