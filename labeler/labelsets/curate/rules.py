"""The rules of a curation, in the order of application."""

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
from labeler.labelsets.curate.row_facts import NUMBERS, RowFacts
from labeler.labelsets.curate.verdict import Verdict
from labeler.labelsets.curate.verdict_store import VerdictStore, verify_rows
from labeler.labelsets.curate.verifier import Verifier
from schemas.arrow import KEY_COLUMNS
from schemas.verdicts import RowVerdict, write_verdicts


def _no_reason(row: int) -> str:
    del row
    return ""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a rule.

    Attributes:
        kept: bool [rows], the rows that it keeps of the ones it was applied to.
        why: returns the reason for a removed row, if there is more to say than the rule's name.
        faults: removed rows that the verifier could not judge, and why.
    """

    kept: Mask
    why: Callable[[int], str] = _no_reason
    faults: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
        name: the flag, for the report.
        setting: the flag's value, for the report.
        apply: applies the rule to the rows that are left, bool [rows].
        is_countable: whether it may also be applied to all rows, to count what it removes alone.
    """

    name: str
    setting: str
    apply: Callable[[Mask], Outcome]
    is_countable: bool = True


@dataclass
class Ranking:
    """Ranks rows by score, then by key.

    Attributes:
        facts: facts about the rows.
        score: SQL expression, or None.
        verdicts: the verifier's numbers, float64 [rows]; None before it has run.
    """

    facts: RowFacts
    score: str | None
    verdicts: NDArray[np.float64] | None = None

    def rank(self) -> NDArray[np.int64]:
        """Return the rank of each row, int64 [rows]: 0 is best, rows without a score are last."""
        rows = self.facts.rows
        if self.verdicts is not None:
            rows = rows.with_columns(verdict=pl.Series(self.verdicts))
        by = self.score or ("verdict" if self.verdicts is not None else "0")
        with conditions.polars_errors(f"--score {by!r}"):
            scored = rows.sql(f"SELECT n_tokens, ({by}) AS score FROM self")["score"]
            scores = scored.cast(pl.Float64).fill_nan(None)
        order = rows.select(KEY_COLUMNS).with_columns(score=scores).with_row_index("row")
        order = order.sort(
            ["score", *KEY_COLUMNS], descending=[True, False, False, False], nulls_last=True
        )
        rank = np.empty(rows.height, np.int64)
        rank[order["row"].to_numpy()] = np.arange(rows.height)
        return rank


def require_score(settings: CurateConfig) -> None:
    """Check that `--score` gives a number for each row.

    Raises:
        SoftshardsError: with the cause.
    """
    if settings.score is None:
        return
    names = [*KEY_COLUMNS, *NUMBERS, "repetition"] + ["verdict"] * settings.has_verifier
    types = pl.Schema({"id": pl.String} | {n: pl.Float64 for n in names if n != "id"})
    flag = f"--score {settings.score!r}"
    conditions.require_expression(types, settings.score, flag, number=True)


def build_rules(
    rows: Rows,
    facts: RowFacts,
    settings: CurateConfig,
    verifier: Verifier | None,
    store: VerdictStore | None,
) -> list[Rule]:
    """Return the rules of the settings; SQL conditions are evaluated here, all in one query.

    Raises:
        SoftshardsError: an expression is not a condition on a row.
    """
    ranking = Ranking(facts, settings.score)
    rules = _single_row_rules(rows, settings)
    if facts.overlaps is not None:
        rules.append(_decontaminate(facts, settings))
    if verifier is not None and store is not None:
        rules.append(_verify(rows, facts, settings, verifier, store, ranking))
    countable = not (
        settings.has_verifier and (settings.score is None or "verdict" in settings.score)
    )
    if settings.dedup != "none":
        rules.append(_dedup(facts, settings, ranking, countable))
    if settings.best_of is not None:
        rules.append(_best_of(facts, settings.best_of, ranking, countable))
    return rules


def _single_row_rules(rows: Rows, settings: CurateConfig) -> list[Rule]:
    wanted = [Condition("where", text, text) for text in settings.where]
    if (most := settings.max_repetition) is not None:
        keep = pl.col("repetition") <= most
        wanted.append(Condition("max-repetition", f"{most:g}", keep))
    if settings.refusals:
        wanted.append(conditions.refusals())
    wanted += [conditions.no_match(pattern) for pattern in settings.refusal_pattern]
    masks = conditions.masks(rows, wanted)
    return [Rule(c.name, c.setting, _fixed(mask)) for c, mask in zip(wanted, masks, strict=True)]


def _fixed(mask: Mask) -> Callable[[Mask], Outcome]:
    return lambda left: Outcome(left & mask)


def _decontaminate(facts: RowFacts, settings: CurateConfig) -> Rule:
    assert facts.overlaps is not None, "the caller checks this"
    shares, texts = facts.overlaps.shares(settings.common)
    names = facts.overlaps.held_out.names
    unit = f"{settings.ngram}-grams of {settings.ngram_of}"

    def why(row: int) -> str:
        return f"{shares[row]:.0%} of its {unit} are held out, the first one in {names[texts[row]]}"

    setting = f"{', '.join(settings.decontaminate)}: {unit}, overlap {settings.overlap:g}"
    clean = shares <= settings.overlap
    return Rule("decontaminate", setting, lambda left: Outcome(left & clean, why))


def _verify(
    rows: Rows,
    facts: RowFacts,
    settings: CurateConfig,
    verifier: Verifier,
    store: VerdictStore,
    ranking: Ranking,
) -> Rule:
    lowest = settings.verify_min

    def passes(verdict: Verdict) -> bool:
        enough = lowest is None or (verdict.number is not None and verdict.number >= lowest)
        return verdict.passed and enough

    def apply(left: Mask) -> Outcome:
        ranking.verdicts, verdicts = verify_rows(rows, left, verifier, store)
        kept = np.zeros(len(left), bool)
        kept[[row for row, verdict in verdicts.items() if passes(verdict)]] = True

        if settings.verdicts is not None and not settings.dry_run:
            keys = facts.rows.select(KEY_COLUMNS)
            judged = (_row_verdict(keys.row(at), v, kept[at]) for at, v in verdicts.items())
            write_verdicts(
                settings.verdicts, rows.labels.manifest.identity_digest, verifier.target, judged
            )
        faults = {row: v.fault for row, v in verdicts.items() if v.fault is not None}

        def why(row: int) -> str:
            return faults.get(row) or f"its number is {verdicts[row].number:g}"

        return Outcome(kept, why, faults)

    name = "verify-command" if verifier.is_command else "verify"
    setting = verifier.target + ("" if lowest is None else f", at least {lowest:g}")
    return Rule(name, setting, apply, is_countable=False)


def _row_verdict(key: tuple[object, ...], verdict: Verdict, passed: bool) -> RowVerdict:
    name, chunk, sample = key
    return RowVerdict.model_validate(
        {
            "id": name,
            "chunk": chunk,
            "sample": sample,
            "passed": bool(passed),
            "number": verdict.number,
            "fault": verdict.fault,
        }
    )


def _dedup(facts: RowFacts, settings: CurateConfig, ranking: Ranking, countable: bool) -> Rule:
    def choose(left: Mask) -> Choice:
        rank = ranking.rank()
        if settings.dedup == "exact":
            return choose_exact(facts.digests, rank, left)
        with progress("rows") as bar:

            def track(rows: Iterable[int]) -> Iterable[int]:
                return bar.track(list(rows), description="comparing")

            return choose_near(facts.signatures, rank, left, settings.similarity, track)

    def apply(left: Mask) -> Outcome:
        kept, twins = choose(left)
        return Outcome(kept, lambda row: f"a duplicate of {facts.name(twins[row])}")

    setting = f"{settings.dedup}, on {settings.dedup_on}"
    if settings.dedup == "near":
        setting += f": {settings.shingle}-grams of tokens, similarity {settings.similarity:g}"
    return Rule("dedup", setting, apply, is_countable=countable)


def _best_of(facts: RowFacts, count: int, ranking: Ranking, countable: bool) -> Rule:
    def apply(left: Mask) -> Outcome:
        rows = facts.rows.select("id", "chunk").with_columns(
            rank=pl.Series(ranking.rank()), row=pl.int_range(pl.len())
        )
        rows = rows.filter(left)
        best = rows.filter(pl.col("rank").rank("ordinal").over("id", "chunk") <= count)
        kept = np.zeros(len(left), bool)
        kept[best["row"].to_numpy()] = True
        return Outcome(kept)

    return Rule("best-of", str(count), apply, is_countable=countable)
