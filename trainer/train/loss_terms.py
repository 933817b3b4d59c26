"""What a run minimizes, as flags say it. No torch: the settings check their flags with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

from schemas.arrow import SPAN_KINDS
from schemas.errors import SoftshardsError

BUCKETED = ("forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd")
"""Losses over the teacher's top k and the tail; only at T = 1."""

LOSSES = (*BUCKETED, "renormalized_kl", "sampled", "ce")

FORMER_NAMES = {"renormalised_kl": "renormalized_kl"}

Shape = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """One loss and its weight over the steps of a run, from `start` to `stop`."""

    name: str
    start: float
    stop: float
    shape: Shape = "constant"

    def weight(self, step: int, total: int) -> float:
        """The weight at a step of 0..total - 1: `start` at the first, `stop` at the last."""
        done = step / max(1, total - 1)
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.stop - self.start) * done


@dataclass(frozen=True, kw_only=True)
class TokenWeighting:
    """How much each label counts: the product of what is set here, 1 by default.

    Attributes:
        kinds: weight of each of SPAN_KINDS.
        sources: (pattern, weight) pairs; the first pattern that fits a row's source holds.
        entropy: c in 1 + c H / log(k + 1), H the teacher's entropy over top k and tail.
        position: (a, length): from a without any context to 1 after `length` tokens of it.
    """

    kinds: tuple[float, ...] = (1.0,) * len(SPAN_KINDS)
    sources: tuple[tuple[str, float], ...] = ()
    entropy: float = 0.0
    position: tuple[float, int] = (1.0, 1)

    @property
    def uniform(self) -> bool:
        """Whether every label counts 1."""
        return self == TokenWeighting()


def parse_losses(
    texts: tuple[str, ...], *, temperature: float, jsd_beta: float, skew_alpha: float
) -> tuple[LossTerm, ...]:
    """The terms that --loss names, checked against the flags that go with them.

    Raises:
        SoftshardsError: naming the flag and what it may be.
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
    tailed = [name for name in names if name in BUCKETED]
    if temperature != 1 and tailed:
        raise SoftshardsError(
            f"--loss {tailed[0]} at --temperature {temperature:g}: the labels hold the mass "
            "outside the top k at T = 1, and what it is at another T depends on how it is spread "
            "over tokens that were not stored",
            hint="leave --temperature at 1, or use --loss renormalized_kl=1, which has no tail",
        )
    if temperature != 1 and "renormalized_kl" not in names:
        raise SoftshardsError(
            f"--temperature {temperature:g} changes nothing: none of the losses has one",
            hint="leave --temperature at 1",
        )
    for flag, share in (("--jsd-beta", jsd_beta), ("--skew-alpha", skew_alpha)):
        if not 0 < share < 1:
            raise SoftshardsError(f"{flag} is {share}; it must be above 0 and below 1")
    return terms


def parse_weighting(
    kinds: tuple[str, ...], sources: tuple[str, ...], entropy: float, position: str | None
) -> TokenWeighting:
    """The weights that --kind-weight, --source-weight and the like ask for.

    Raises:
        SoftshardsError: naming the flag and what it may be.
    """
    by_kind = dict.fromkeys(SPAN_KINDS, 1.0)
    for text in kinds:
        kind, weight = _named("--kind-weight", text, "KIND=WEIGHT, such as thinking=0.2")
        if kind not in by_kind:
            raise SoftshardsError(
                f"--kind-weight: there is no kind {kind!r}; there are {', '.join(SPAN_KINDS)}"
            )
        by_kind[kind] = weight
    by_source = tuple(
        _named("--source-weight", text, "PATTERN=WEIGHT, such as code/*=2") for text in sources
    )
    if not (math.isfinite(entropy) and entropy >= -1):
        raise SoftshardsError(f"--entropy-weight is {entropy}; it must be -1 or more")
    return TokenWeighting(
        kinds=tuple(by_kind.values()),
        sources=by_source,
        entropy=entropy,
        position=(1.0, 1) if position is None else _position(position),
    )


def _parse_loss(text: str) -> LossTerm:
    form = "NAME=WEIGHT, or NAME=SHAPE:FROM:TO with linear or cosine, such as ce=linear:1:0.1"
    name, separator, value = text.partition("=")
    name = FORMER_NAMES.get(name, name)
    if name not in LOSSES:
        raise SoftshardsError(f"--loss: there is no {name!r}; there are {', '.join(LOSSES)}")
    shape, *ends = value.split(":") if ":" in value else ("constant", value, value)
    if not separator or shape not in ("constant", "linear", "cosine") or len(ends) != 2:
        raise SoftshardsError(f"--loss is {text!r}; it must be {form}")
    start, stop = (_weight("--loss", text, end, form) for end in ends)
    return LossTerm(name=name, start=start, stop=stop, shape=cast(Shape, shape))


def _position(text: str) -> tuple[float, int]:
    form = "WEIGHT:LENGTH, such as 0.1:64"
    start, _, length = text.partition(":")
    weight = _weight("--position-weight", text, start, form)
    if not length.isdecimal() or int(length) < 1:
        raise SoftshardsError(f"--position-weight is {text!r}; it must be {form}")
    return weight, int(length)


def _named(flag: str, text: str, form: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    if not name:
        raise SoftshardsError(f"{flag} is {text!r}; it must be {form}")
    return name, _weight(flag, text, value, form)


def _weight(flag: str, text: str, value: str, form: str) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise SoftshardsError(f"{flag} is {text!r}; it must be {form}, with weights of 0 or more")
    return weight
