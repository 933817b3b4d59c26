"""Parse `--loss` and the flags that weight labels. No torch: the settings check their flags."""

from __future__ import annotations

import math
from typing import cast

from schemas.arrow import SPAN_KINDS
from schemas.errors import SoftshardsError
from trainer.losses.loss_table import FORMER_NAMES, LOSSES
from trainer.losses.objective import LossTerm, Shape, TokenWeighting


def parse_losses(
    texts: tuple[str, ...], *, temperature: float, jsd_beta: float, skew_alpha: float
) -> tuple[LossTerm, ...]:
    """Return the terms that --loss names, checked against the settings of the losses.

    Raises:
        SoftshardsError: names the flag and the values that it takes.
    """
    terms = tuple(_parse_loss(text) for text in texts)
    names = [term.name for term in terms]
    for name in names:
        if names.count(name) > 1:
            raise SoftshardsError(f"--loss {name} is given twice")
    if not any(term.start or term.stop for term in terms):
        raise SoftshardsError("--loss: all weights are 0, there is nothing to learn")
    if not (math.isfinite(temperature) and temperature > 0):
        raise SoftshardsError(f"--temperature is {temperature}; it must be above 0")
    if temperature != 1:
        _check_temperature(names, temperature)
    for flag, weight in (("--jsd-beta", jsd_beta), ("--skew-alpha", skew_alpha)):
        if not 0 < weight < 1:
            raise SoftshardsError(f"{flag} is {weight}; it must be above 0 and below 1")
    return terms


def parse_weighting(
    kinds: tuple[str, ...], sources: tuple[str, ...], entropy: float, position: str | None
) -> TokenWeighting:
    """Return the label weights of --kind-weight, --source-weight and the like.

    Raises:
        SoftshardsError: names the flag and the values that it takes.
    """
    by_kind = dict.fromkeys(SPAN_KINDS, 1.0)
    for text in kinds:
        kind, weight = _parse_pair("--kind-weight", text, "KIND=WEIGHT, such as thinking=0.2")
        if kind not in by_kind:
            raise SoftshardsError(
                f"--kind-weight: there is no kind {kind!r}; kinds are {', '.join(SPAN_KINDS)}"
            )
        by_kind[kind] = weight
    by_source = tuple(
        _parse_pair("--source-weight", text, "PATTERN=WEIGHT, such as code/*=2") for text in sources
    )
    if not (math.isfinite(entropy) and entropy >= -1):
        raise SoftshardsError(f"--entropy-weight is {entropy}; it must be -1 or more")
    return TokenWeighting(
        kinds=tuple(by_kind.values()),
        sources=by_source,
        entropy=entropy,
        position=(1.0, 1) if position is None else _parse_position(position),
    )


def _check_temperature(names: list[str], temperature: float) -> None:
    """Refuse a temperature other than 1 where no loss takes one."""
    if not any(LOSSES[name].takes_temperature for name in names):
        raise SoftshardsError(
            f"--temperature {temperature:g} changes nothing: none of the losses takes one",
            hint="leave --temperature at 1",
        )


def _parse_loss(text: str) -> LossTerm:
    form = "NAME=WEIGHT, or NAME=SHAPE:FROM:TO with linear or cosine, such as ce=linear:1:0.1"
    name, separator, value = text.partition("=")
    name = FORMER_NAMES.get(name, name)
    if name not in LOSSES:
        raise SoftshardsError(f"--loss: there is no {name!r}; losses are {', '.join(LOSSES)}")
    shape, *ends = value.split(":") if ":" in value else ("constant", value, value)
    if not separator or shape not in ("constant", "linear", "cosine") or len(ends) != 2:
        raise SoftshardsError(f"--loss is {text!r}; it must be {form}")
    start, stop = (_parse_weight("--loss", text, end, form) for end in ends)
    return LossTerm(name=name, start=start, stop=stop, shape=cast(Shape, shape))


def _parse_position(text: str) -> tuple[float, int]:
    form = "WEIGHT:LENGTH, such as 0.1:64"
    start, _, length = text.partition(":")
    weight = _parse_weight("--position-weight", text, start, form)
    if not length.isdecimal() or int(length) < 1:
        raise SoftshardsError(f"--position-weight is {text!r}; it must be {form}")
    return weight, int(length)


def _parse_pair(flag: str, text: str, form: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    if not name:
        raise SoftshardsError(f"{flag} is {text!r}; it must be {form}")
    return name, _parse_weight(flag, text, value, form)


def _parse_weight(flag: str, text: str, value: str, form: str) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise SoftshardsError(f"{flag} is {text!r}; it must be {form}, with weights of 0 or more")
    return weight
