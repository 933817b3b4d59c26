"""The loss of a batch: a weighted sum of losses over labels, which may count unequally."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from trainer import losses
from trainer.data.collate import Batch
from trainer.data.tempered import at_temperature
from trainer.losses.loss_table import LOSSES, Inputs
from trainer.losses.objective import Objective, TokenWeighting
from trainer.student.student_output import StudentOutput


def label_losses(output: StudentOutput, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return forward KL and cross-entropy, each [n] in nats: reported whatever is minimized."""
    teacher = (batch.topk_logprobs, batch.tail_logprob)
    kl = losses.forward_kl(*teacher, output.logp, output.log_rest)
    return kl, losses.cross_entropy(output.target_logp)


def token_weights(weighting: TokenWeighting, batch: Batch) -> Tensor:
    """Return the weight of each label of a batch: float32 [n], 0 or more."""
    weights = torch.ones_like(batch.tail_logprob)
    if batch.label_weights is not None:
        weights = weights * batch.label_weights
    if weighting.is_uniform:
        return weights
    weights = weights * weights.new_tensor(weighting.kinds)[batch.kinds]
    if weighting.sources:
        by_row = [_source_weight(weighting, source) for source in batch.sources]
        weights = weights * weights.new_tensor(by_row)[batch.documents]
    if weighting.entropy:
        teacher = torch.cat([batch.topk_logprobs, batch.tail_logprob[:, None]], 1)
        entropy = torch.special.entr(teacher.exp()).sum(1)
        share = entropy / (math.log(teacher.shape[1]) or 1.0)  # 0 if there is no top-k
        weights = weights * (1 + weighting.entropy * share).clamp_min(0)
    start, length = weighting.position
    context = batch.position_ids.flatten()[batch.rows] + 1
    return weights * (start + (1 - start) * (context / length).clamp_max(1))


def batch_loss(
    objective: Objective,
    output: StudentOutput,
    batch: Batch,
    weights: Tensor,
    factors: list[float],
) -> tuple[Tensor, Tensor]:
    """Return the loss of a batch and its parts, as sums over labels.

    Divided by the step's sum of weights (over all micro-batches and ranks) the loss is the step's.
    A term whose factor is 0 is left out, not multiplied by 0: it is still reported, but it costs no
    backward pass and its infinities cannot reach the gradient.

    Args:
        weights: [n] of `token_weights`.
        factors: weight of each term at this step.

    Returns:
        The loss, and [2 + terms] without gradient: KL and CE of `label_losses`, unweighted, then
        each term's sum of weights times losses.
    """
    kl, ce = label_losses(output, batch)
    exact = [term.name for term in objective.terms if LOSSES[term.name].inputs == "exact"]
    known = {"ce": ce, **dict(zip(exact, output.exact, strict=True))}
    if objective.tail_temperature == 1:
        known["forward_kl"] = kl
    parts: list[Tensor] = []
    sums = [kl.detach().sum(), ce.detach().sum()]
    for term, factor in zip(objective.terms, factors, strict=True):
        with torch.set_grad_enabled(torch.is_grad_enabled() and factor != 0):
            values = known.get(term.name)
            if values is None:
                values = _losses_of_term(term.name, objective, output, batch)
            # A label of weight 0 has no part even where its loss is infinite.
            total = (weights * values.masked_fill(weights == 0, 0)).sum()
        sums.append(total.detach())
        if factor:
            parts.append(factor * total)
    parts += _anchors(objective, output, factors)
    return sum(parts[1:], parts[0]), torch.stack(sums)


def _anchors(objective: Objective, output: StudentOutput, factors: list[float]) -> list[Tensor]:
    """Return zeros that depend on what this step leaves out: the head, or projections of states.

    DDP waits for the gradient of every parameter, and a step in which nothing counts (a schedule
    that starts at 0) still runs its backward pass.
    """
    used = {LOSSES[t.name].inputs for t, factor in zip(objective.terms, factors) if factor}
    left = [] if used - {"states", "router"} else [output.target_logp]
    left += [] if "states" in used else [student for _, student in output.states]
    return [0 * torch.nan_to_num(values).sum() for values in left]


def _losses_of_term(name: str, objective: Objective, output: StudentOutput, batch: Batch) -> Tensor:
    loss = LOSSES[name]
    settings: dict[str, float | str] = {}
    if loss.setting is not None:
        parameter, field = loss.setting
        settings[parameter] = getattr(objective, field)
    function = getattr(losses, loss.function)
    values: Tensor
    if loss.inputs == "states":
        if not output.states:
            raise ValueError("the student was not asked for its hidden states")
        distances = [function(*pair, **settings) for pair in output.states]
        values = torch.stack(distances).mean(0)
    elif loss.inputs == "buckets" and objective.temperature != 1:
        values = function(*_tempered(objective.temperature, output, batch), **settings)
        values = objective.temperature**2 * values
    else:
        values = function(*_inputs(loss.inputs, output, batch), **settings)
    return values


def _tempered(temperature: float, output: StudentOutput, batch: Batch) -> tuple[Tensor, ...]:
    """Return the top-k and the tail of both sides at a temperature."""
    if output.tempered is None or batch.tempered_tail is None:
        raise ValueError("neither side was asked for this temperature")
    teacher = at_temperature(batch.topk_logprobs, batch.tempered_tail, temperature)
    return teacher, batch.tempered_tail, *output.tempered


def _inputs(inputs: Inputs, output: StudentOutput, batch: Batch) -> tuple[Tensor, ...]:
    match inputs:
        case "buckets":
            return batch.topk_logprobs, batch.tail_logprob, output.logp, output.log_rest
        case "top_k":
            return batch.topk_logprobs, output.logp
        case "token":
            return (output.target_logp,)
        case "draws":
            if output.drawn_logp is None or batch.drawn_counts is None:
                raise ValueError("the batch has no drawn ids")
            return batch.drawn_counts, output.drawn_logp
        case "router":
            if output.router is None:
                raise ValueError("the student was not asked for the balance of its experts")
            return output.router, output.log_rest
        case "exact" | "states":
            raise ValueError("the student was not given the teacher's hidden states")


def _source_weight(weighting: TokenWeighting, source: str) -> float:
    matches = (weight for pattern, weight in weighting.sources if fnmatchcase(source, pattern))
    return next(matches, 1.0)
