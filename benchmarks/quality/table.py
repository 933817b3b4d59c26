"""From rows of measurements to means, spreads and paired differences, and their tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.quality.arms import ARMS

METRICS = {"ppl": 3, "kl": 4, "agreement": 4, "ece": 4}
"""The metrics in the tables, and their decimals."""
BASES = ("ce", "ce_generations", "online")
"""Arms that the others are compared with, seed by seed."""
Q2_PERCENT = 0.5
"""Largest difference from `online` in held-out cross-entropy."""
EXACT_PERCENT = 1.0
"""Largest difference in KL, of the arms that learn from the teacher's whole distribution."""
EXACT = ("exact_kl", "exact_kl_small")
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Two-sided 95 % quantiles of Student's t at 1, 2, ... degrees of freedom."""
MOST_SEEDS = len(T95) + 1

Row = dict[str, Any]


def summarize(rows: Sequence[Row]) -> dict[str, Any]:
    """Return means and deviations of each arm, paired differences, and the answers to Q1 and Q2.

    Args:
        rows: one per arm and seed, with `loss` (the arm's name), `seed`, METRICS and `ce`.
    """
    by_arm = _by_arm(rows)
    differences = {
        base: {
            arm: {name: difference(own, by_arm[base], name) for name in (*METRICS, "ce")}
            for arm, own in by_arm.items()
            if arm != base
        }
        for base in BASES
        if base in by_arm
    }
    return {
        "arms": {
            arm: {"seeds": sorted(own), **{name: spread(own, name) for name in METRICS}}
            for arm, own in by_arm.items()
        },
        "differences": differences,
        "q1": _q1(differences),
        "q2": _against_online("kl", by_arm, differences),
        "exact": {
            arm: {**found, "state_bytes": spread(by_arm[arm], "state_bytes")["mean"]}
            for arm in EXACT
            if (found := _against_online(arm, by_arm, differences))
        },
    }


def difference(own: dict[int, Row], base: dict[int, Row], name: str) -> dict[str, Any]:
    """Return the mean difference of two arms over seeds, and half of its 95 % interval (paired t).

    The seed decides the order of the data for both. `beyond_noise`: the interval excludes 0; None
    with fewer than two seeds.
    """
    gaps = [own[seed][name] - base[seed][name] for seed in sorted(own.keys() & base.keys())]
    mean = statistics.mean(gaps) if gaps else math.nan
    if len(gaps) < 2:
        return {"mean": mean, "half_width": None, "beyond_noise": None}
    half = T95[len(gaps) - 2] * statistics.stdev(gaps) / math.sqrt(len(gaps))
    return {"mean": mean, "half_width": half, "beyond_noise": abs(mean) > half}


def markdown(summary: dict[str, Any], about: Sequence[str]) -> str:
    """Return the tables as Markdown that is also readable as plain text."""
    what = {arm.name: arm.what for arm in ARMS}
    names = ("perplexity", "KL to the teacher", "top-1 agreement", "ECE")
    lines = [*about, ""]
    lines += aligned_table(
        ["", "trained on", *names],
        [
            [name, what.get(name, ""), *(spread_text(entry[m], n) for m, n in METRICS.items())]
            for name, entry in [*summary.get("references", {}).items(), *summary["arms"].items()]
        ],
    )
    for base, arms in summary["differences"].items():
        lines += ["", f"Difference from {base}, seed by seed (± half of the 95 % interval):", ""]
        lines += aligned_table(
            ["", *names],
            [
                [arm, *(gap_text(values[m], n) for m, n in METRICS.items())]
                for arm, values in arms.items()
            ],
        )
    lines += ["", "Bold: the interval excludes 0, so the difference is beyond the seeds' noise."]
    if q1 := summary["q1"]:
        answers = [f"{name.replace('_', ' ')}: {_yes(value)}" for name, value in q1.items()]
        lines += [f"Q1, kd: {'; '.join(answers)}."]
    if q2 := summary["q2"]:
        lines += [
            f"Q2, kl (offline) against online: held-out cross-entropy {q2['ce_percent']:+.3f} %, "
            f"KL {q2['kl_percent']:+.3f} % (target: cross-entropy within {Q2_PERCENT} %: "
            f"{_yes(q2['holds'])})."
        ]
    for arm, found in summary["exact"].items():
        lines += [
            f"{arm} ({found['state_bytes']:.0f} bytes of states per label) against online: "
            f"cross-entropy {found['ce_percent']:+.3f} %, KL {found['kl_percent']:+.3f} % (target: "
            f"within {Q2_PERCENT} and {EXACT_PERCENT:g} %: {_yes(found['holds'])})."
        ]
    return "\n".join(lines) + "\n"


def _q1(differences: dict[str, Any]) -> dict[str, bool | None]:
    """Return True where kd is better than a CE arm by more than the seeds' noise."""
    found: dict[str, bool | None] = {}
    for base in ("ce", "ce_generations"):
        for name in ("ppl", "kl"):
            if gap := differences.get(base, {}).get("kd", {}).get(name):
                noise = gap["beyond_noise"]
                found[f"lower_{name}_than_{base}"] = noise and gap["mean"] < 0
    return found


def _against_online(
    arm: str, by_arm: dict[str, dict[int, Row]], differences: dict[str, Any]
) -> dict[str, Any]:
    """Return by how many percent an arm differs from training with the teacher loaded."""
    gaps = differences.get("online", {}).get(arm)
    if not gaps:
        return {}
    percent = {
        f"{name}_percent": 100 * gaps[name]["mean"] / spread(by_arm["online"], name)["mean"]
        for name in ("ce", "kl")
    }
    holds = abs(percent["ce_percent"]) <= Q2_PERCENT
    if arm in EXACT:
        holds = holds and abs(percent["kl_percent"]) <= EXACT_PERCENT
    return {**percent, "holds": holds}


def _by_arm(rows: Sequence[Row]) -> dict[str, dict[int, Row]]:
    found: dict[str, dict[int, Row]] = {}
    for arm in ARMS:
        if own := {row["seed"]: row for row in rows if row["loss"] == arm.name}:
            found[arm.name] = own
    return found


def spread(own: dict[int, Row], name: str) -> dict[str, float | None]:
    """Return the mean of a metric over seeds and its standard deviation; None for one seed."""
    values = [row[name] for row in own.values()]
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "deviation": deviation}


def spread_text(value: dict[str, float | None], decimals: int) -> str:
    """Return what `spread` found as text."""
    deviation = value["deviation"]
    spread = "" if deviation is None else f" ± {deviation:.{decimals}f}"
    return f"{value['mean']:.{decimals}f}{spread}"


def gap_text(value: dict[str, Any], decimals: int) -> str:
    """Return what `difference` found as text, bold if it is beyond the noise."""
    half = value["half_width"]
    text = f"{value['mean']:+.{decimals}f}" + ("" if half is None else f" ± {half:.{decimals}f}")
    return f"**{text}**" if value["beyond_noise"] else text


def _yes(value: bool | None) -> str:
    return "unknown from one seed" if value is None else "yes" if value else "no"


def aligned_table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Return a Markdown table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    rule = ["-" * max(3, width) for width in widths]
    widths = list(map(len, rule))

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths)) + " |"

    return [line(header), line(rule), *map(line, rows)]
