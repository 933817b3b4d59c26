"""The rules of a curation, in the order in which they are applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from labeler.console import progress
from labeler.labelsets.common.rows import Mask, Rows
from labeler.labelsets.curate import conditions
from labeler.labelsets.curate.conditions import Condition
from labeler.labelsets.curate.curate_config import CurateConfig
from labeler.labelsets.curate.duplicates import Choice, choose_exact, choose_near
from labeler.labelsets.curate.row_facts import NUMBERS, Facts
from labeler.labelsets.curate.verdict_store import Store, verify_rows
from labeler.labelsets.curate.verifier import Verdict, Verifier
from schemas.arrow import KEY_COLUMNS


def _nothing_more(row: int) -> str:
    del row
    return ""


@dataclass(frozen=True)
class Judged:
    """What a rule did.

    Attributes:
        kept: bool [rows], of the rows that it was asked about.
        why: says of a removed row why, where that is more than the rule's name.
        faults: removed rows that could not be judged, and why.
    """

    kept: Mask
    why: Callable[[int], str] = _nothing_more
    faults: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
        name, setting: the flag and its value, for the report.
        judge: asked about the rows that are left, bool [rows].
        alone: whether it may be asked about all rows, too, only to count.
    """

    name: str
    setting: str
    judge: Callable[[Mask], Judged]
    alone: bool = True


@dataclass
class Ranking:
    """Which of several rows is best: by score, then by key.

    Attributes:
        facts: of the rows; score: SQL, or None.
        verdicts: the verifier's numbers, float64 [rows], once there are any.
    """

    facts: Facts
    score: str | None
    verdicts: NDArray[np.float64] | None = None

    def rank(self) -> NDArray[np.int64]:
        """Rank of each row, int64 [rows], 0 is the best; rows without a score come last."""
        rows = self.facts.rows
        if self.verdicts is not None:
            rows = rows.with_columns(verdict=pl.Series(self.verdicts))
        by = self.score or ("verdict" if self.verdicts is not None else "0")
        with conditions.refused(f"--score {by!r}"):
            scored = rows.sql(f"SELECT n_tokens, ({by}) AS score FROM self")["score"]
            scores = scored.cast(pl.Float64).fill_nan(None)
        order = rows.select(KEY_COLUMNS).with_columns(score=scores).with_row_index("row")
        order = order.sort(
            ["score", *KEY_COLUMNS], descending=[True, False, False, False], nulls_last=True
        )
        rank = np.empty(rows.height, np.int64)
        rank[order["row"].to_numpy()] = np.arange(rows.height)
        return rank


def check_score(settings: CurateConfig) -> None:
    """Refuse a score that is no number of each row.

    Raises:
        SoftshardsError: with the cause.
    """
    if settings.score is None:
        return
    names = [*KEY_COLUMNS, *NUMBERS, "repetition"] + ["verdict"] * settings.verifies
    types = pl.Schema({"id": pl.String} | {n: pl.Float64 for n in names if n != "id"})
    asked = f"--score {settings.score!r}"
    conditions.check(types, settings.score, asked, number=True)


def build(
    rows: Rows, facts: Facts, settings: CurateConfig, verifier: Verifier | None, store: Store | None
) -> list[Rule]:
    """The rules that the settings ask for. SQL conditions are evaluated here, all in one query.

    Raises:
        SoftshardsError: a condition is no condition on a row.
    """
    ranking = Ranking(facts, settings.score)
    rules = _on_single_rows(rows, settings)
    if facts.overlaps is not None:
        rules.append(_decontaminate(facts, settings))
    if verifier is not None and store is not None:
        rules.append(_verify(rows, settings, verifier, store, ranking))
    countable = not (settings.verifies and (settings.score is None or "verdict" in settings.score))
    if settings.dedup != "none":
        rules.append(_dedup(facts, settings, ranking, countable))
    if settings.best_of is not None:
        rules.append(_best_of(facts, settings.best_of, ranking, countable))
    return rules


def _on_single_rows(rows: Rows, settings: CurateConfig) -> list[Rule]:
    asked = [Condition("where", text, text) for text in settings.where]
    if (most := settings.max_repetition) is not None:
        keep = pl.col("repetition") <= most
        asked.append(Condition("max-repetition", f"{most:g}", keep))
    if settings.refusals:
        asked.append(conditions.refusals())
    asked += [conditions.no_match(pattern) for pattern in settings.refusal_pattern]
    masks = conditions.masks(rows, asked)
    return [Rule(c.name, c.setting, _fixed(mask)) for c, mask in zip(asked, masks)]


def _fixed(mask: Mask) -> Callable[[Mask], Judged]:
    return lambda left: Judged(left & mask)


def _decontaminate(facts: Facts, settings: CurateConfig) -> Rule:
    assert facts.overlaps is not None, "asked by the caller"
    shares, texts = facts.overlaps.shares(settings.common)
    names = facts.overlaps.shares_with.names
    unit = f"{settings.ngram}-grams of {settings.ngram_of}"

    def why(row: int) -> str:
        return f"{shares[row]:.0%} of its {unit} are held out, the first in {names[texts[row]]}"

    setting = f"{', '.join(settings.decontaminate)}: {unit}, overlap {settings.overlap:g}"
    clean = shares <= settings.overlap
    return Rule("decontaminate", setting, lambda left: Judged(left & clean, why))


def _verify(
    rows: Rows, settings: CurateConfig, verifier: Verifier, store: Store, ranking: Ranking
) -> Rule:
    lowest = settings.verify_min

    def passes(verdict: Verdict) -> bool:
        enough = lowest is None or (verdict.number is not None and verdict.number >= lowest)
        return verdict.passed and enough

    def judge(left: Mask) -> Judged:
        ranking.verdicts, verdicts = verify_rows(rows, left, verifier, store)
        kept = np.zeros(len(left), bool)
        kept[[row for row, verdict in verdicts.items() if passes(verdict)]] = True

        faults = {row: v.fault for row, v in verdicts.items() if v.fault is not None}

        def why(row: int) -> str:
            return faults.get(row) or f"its number is {verdicts[row].number:g}"

        return Judged(kept, why, faults)

    name = "verify-command" if verifier.is_command else "verify"
    setting = verifier.target + ("" if lowest is None else f", at least {lowest:g}")
    return Rule(name, setting, judge, alone=False)


def _dedup(facts: Facts, settings: CurateConfig, ranking: Ranking, countable: bool) -> Rule:
    def choose(left: Mask) -> Choice:
        rank = ranking.rank()
        if settings.dedup == "exact":
            return choose_exact(facts.digests, rank, left)
        with progress("rows") as bar:

            def track(rows: Iterable[int]) -> Iterable[int]:
                return bar.track(list(rows), description="comparing")

            return choose_near(facts.signatures, rank, left, settings.similarity, track)

    def judge(left: Mask) -> Judged:
        kept, twins = choose(left)
        return Judged(kept, lambda row: f"a duplicate of {facts.name(twins[row])}")

    setting = f"{settings.dedup}, on {settings.dedup_on}"
    if settings.dedup == "near":
        setting += f": {settings.shingle}-grams of tokens, similarity {settings.similarity:g}"
    return Rule("dedup", setting, judge, alone=countable)


def _best_of(facts: Facts, count: int, ranking: Ranking, countable: bool) -> Rule:
    def judge(left: Mask) -> Judged:
        rows = facts.rows.select("id", "chunk").with_columns(
            rank=pl.Series(ranking.rank()), row=pl.int_range(pl.len())
        )
        rows = rows.filter(left)
        best = rows.filter(pl.col("rank").rank("ordinal").over("id", "chunk") <= count)
        kept = np.zeros(len(left), bool)
        kept[best["row"].to_numpy()] = True
        return Judged(kept)

    return Rule("best-of", str(count), judge, alone=countable)
