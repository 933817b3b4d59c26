"""Filters of the report's templates: figures and tokens as a reader sees them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from schemas.printable import one_line, printable
from trainer.console import percent, size, times
from trainer.evaluate.results import ACCURACY, ALL_QUALITY, Quality
from trainer.evaluate.worst_sequences import WorstSequence
from trainer.report.markdown_text import escape_cell, escape_text
from trainer.report.report_data import shown_number
from trainer.report.ship_verdict import between, duration, money

FULL_HEAT = 5.0
"""KL in nats from which a token has the darkest ground."""
TOKENS_BEFORE = 6
SHARES = tuple(q.name for q in (*ALL_QUALITY, ACCURACY) if q.decimals is None)


def heat(kl: float | None) -> str:
    """Return the darkness of a token's ground, from 0 to 1."""
    if kl is None or math.isnan(kl):
        return "0"
    return f"{min(1.0, max(0.0, kl) / FULL_HEAT):.2f}"


def rate(value: float | None) -> str:
    """Return a number per second: with decimals where it is small."""
    return shown_number(value, 0 if value is None or value >= 10 else 2)


def visible(text: str) -> str:
    """Return the text of a token with its spaces and line feeds as signs."""
    signs = {" ": "·", "\n": "↵", "\t": "⇥"}
    return one_line("".join(signs.get(letter, letter) for letter in text)) or "∅"


def before(sequence: WorstSequence, at: int) -> str:
    """Return the text before a token of a passage."""
    return "".join(token.text for token in sequence.tokens[max(0, at - TOKENS_BEFORE) : at])


def signed(value: float | None, name: str) -> str:
    """Return the difference of a metric with its sign; of shares, in percent points."""
    if value is None or not math.isfinite(value):
        return "–" if value is None else "not finite"
    text = f"{value:+.1%}" if name in SHARES else f"{value:+.4f}"
    return text.replace("-", "−")


def shown_quality(value: float | None, quality: Quality) -> str:
    """Return a metric as tables show it."""
    if value is None:
        return quality.text(value)
    plain = math.isfinite(value) and abs(value) < 1e7
    return quality.text(value) if plain else shown_number(value, 2)


def _share(value: float | None) -> str:
    return percent(value) if value is None or math.isfinite(value) else "not finite"


FILTERS: Mapping[str, Callable[..., str]] = {
    "number": shown_number,
    "percent": _share,
    "size": size,
    "times": times,
    "money": money,
    "signed": signed,
    "quality": shown_quality,
    "between": between,
    "duration": duration,
    "heat": heat,
    "rate": rate,
    "visible": visible,
    "printable": printable,
    "oneline": one_line,
    "before": before,
    "cell": escape_cell,
    "text": escape_text,
}
