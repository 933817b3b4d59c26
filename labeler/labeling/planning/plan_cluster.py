"""`labeler plan-cluster`: read what a small run measured, and print the plan of a large one."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from pathlib import Path

from labeler.console import err, human_bytes, human_seconds, out
from labeler.labeling.planning.cluster_config import ClusterConfig
from labeler.labeling.planning.cluster_plan import (
    HOUR,
    Calibration,
    ClusterPlan,
    Machines,
    plan_run,
)
from schemas import LabelSet, SoftshardsError, open_label_set
from schemas.errors import first_line
from schemas.json_values import parse_object
from schemas.kept_positions import parse_rule
from schemas.ledger import Ledger, read_ledger
from schemas.object_store import list_files
from schemas.prices import Prices, money, read_prices

MEGA, GIGA = 1e6, 1e9
BOOKKEEPING = ("plan.parquet", "index/*", "journal/*")
"""Files that grow with the set, beside its shards."""


def run_plan_cluster(config: ClusterConfig) -> int:
    """Print the plan; return 1 if it does not fit the disk or the hours asked for, else 0.

    Raises:
        SoftshardsError: the set has no ledger or no labels, the corpus is not one, or the price
            table does not say which device labels.
    """
    prices = read_prices(config.prices) if config.prices else None
    labels = open_label_set(config.measured, allow_partial=True)
    ledger = _ledger(labels)
    calibration = measure_set(labels, ledger)
    if config.tokens_per_s is not None:
        calibration = dataclasses.replace(calibration, tokens_per_s=config.tokens_per_s)
    if config.like is not None:
        target = size_of(config.like)
        tokens, wanted = target.tokens, _stored_labels(target, labels)
    else:
        assert config.tokens is not None, "the settings were checked"
        tokens = round(config.tokens)
        wanted = round(tokens * calibration.labels_per_token)
    machines = Machines(
        nodes=config.nodes,
        hours=config.hours,
        engines_per_node=config.engines_per_node,
        store_bytes_per_s=config.store_mb_per_s and config.store_mb_per_s * MEGA,
        disk_bytes=config.disk_gb and config.disk_gb * GIGA,
    )
    plan = plan_run(calibration, machines, tokens=tokens, labels=wanted)
    cost = None if prices is None else _cost(plan, prices, ledger)
    currency = None if prices is None else prices.currency
    if config.as_json:
        facts = {"measured": dataclasses.asdict(calibration), "plan": dataclasses.asdict(plan)}
        print(json.dumps(facts | {"cost": cost, "currency": currency}))
    else:
        _print(calibration, plan, config, None if currency is None else money(cost, currency))
    return 0 if plan.fits else 1


def _ledger(labels: LabelSet) -> Ledger:
    found = None if labels.view is not None else read_ledger(labels.path)
    if found is None or not labels.labels or not any(e.tokens for e in found.engines.values()):
        raise SoftshardsError(
            "nothing was measured here: it has no ledger of labeled units",
            path=labels.place,
            hint="give a set that `labeler label` wrote, not a view or an imported set",
        )
    return found


def measure_set(labels: LabelSet, ledger: Ledger) -> Calibration:
    """Return the speed and the size of a label set.

    Args:
        labels: the set; not a view.
        ledger: its ledger. Of several engines, the mean per engine second counts.
    """
    costs = ledger.engines.values()
    seconds = max(sum(cost.engine_seconds for cost in costs), 1e-9)
    stored = labels.stored_bytes + labels.hidden.stored_bytes
    return Calibration(
        engine=", ".join(ledger.engines),
        tokens_per_s=sum(cost.tokens for cost in costs) / seconds,
        labels_per_token=labels.labels / labels.tokens,
        bytes_per_label=(stored + _bookkeeping(labels)) / labels.labels,
        labels_per_unit=_unit_labels(labels),
    )


def _bookkeeping(labels: LabelSet) -> int:
    """Return the bytes of plan, index and journal."""
    if labels.remote is None:
        files = (file for pattern in BOOKKEEPING for file in labels.path.glob(pattern))
        return sum(file.stat().st_size for file in files)
    sizes = {name: file.size for name, file in list_files(labels.remote).items()}
    return sum(sizes[name] for pattern in BOOKKEEPING for name in fnmatch.filter(sizes, pattern))


def _unit_labels(labels: LabelSet) -> float:
    """Return the stored labels of a whole unit: as the set was asked to be cut, or the mean."""
    asked = labels.manifest.provenance.get("plan", {}).get("unit_labels")
    if isinstance(asked, int) and asked > 0:
        return asked * _kept_share(labels)
    return labels.labels / len(labels.shards)


def _kept_share(labels: LabelSet) -> float:
    """Return the stored labels per planned one of a set with some positions; 1 for others."""
    manifest = labels.manifest
    planned = manifest.provenance.get("planned_labels")
    if manifest.identity.keep_positions is None or not planned:
        return 1.0
    done = int(planned) * len(labels.shards) / manifest.planned_units
    return labels.labels / done


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusSize:
    """Size of a corpus.

    Attributes:
        tokens: that a run reads and generates.
        planned: labels before --keep-positions; None if the set is finished.
        stored: labels that are stored, or an estimate.
        keep: the rule of --keep-positions.
    """

    tokens: int
    planned: int | None
    stored: int
    keep: str | None


def size_of(place: str) -> CorpusSize:
    """Return the size of a corpus.

    Args:
        place: a label set; of one that is not finished, what is planned counts. Or the output of
            `labeler label --dry-run --json`.

    Raises:
        SoftshardsError: it is neither.
    """
    if Path(place).is_file() and not place.endswith(".view.json"):
        try:
            content = parse_object(Path(place).read_bytes())
        except ValueError as error:
            raise SoftshardsError(f"not JSON: {first_line(error)}", path=place) from error
        tokens, labels = content.get("tokens"), content.get("labels")
        if not (isinstance(tokens, int) and isinstance(labels, int) and tokens > 0 < labels):
            raise SoftshardsError(
                "it is not the output of `labeler label --dry-run --json`: no tokens and labels",
                path=place,
            )
        stored = content.get("stored_labels")
        stored = stored if isinstance(stored, int) and stored > 0 else labels
        keep = content.get("keep_positions")
        return CorpusSize(
            tokens=tokens,
            planned=labels,
            stored=stored,
            keep=keep if isinstance(keep, str) else None,
        )
    target = open_label_set(place, allow_partial=True)
    provenance, identity = target.manifest.provenance, target.manifest.identity
    keep = identity.keep_positions
    if target.manifest.status == "complete" or "planned_tokens" not in provenance:
        return CorpusSize(tokens=target.tokens, planned=None, stored=target.labels, keep=keep)
    labels = int(provenance["planned_labels"])
    tokens = int(provenance["planned_tokens"]) + labels * (identity.mode == "generate")
    rows = int(provenance.get("planned_rows", 0))
    stored = labels if keep is None else parse_rule(keep).most_labels(labels, rows)
    return CorpusSize(tokens=tokens, planned=labels, stored=stored, keep=keep)


def _stored_labels(corpus: CorpusSize, measured: LabelSet) -> int:
    """Return the labels that a corpus will store; by a rule that was measured, as measured."""
    rule = measured.manifest.identity.keep_positions
    if corpus.keep != rule:
        err.print(
            "warning: the measured set and the corpus have different --keep-positions "
            f"({rule or 'all'}, {corpus.keep or 'all'}): bytes per label and units will differ"
        )
    elif rule is not None and corpus.planned is not None:
        return round(corpus.planned * _kept_share(measured))
    return corpus.stored


def _cost(plan: ClusterPlan, prices: Prices, ledger: Ledger) -> float:
    names = {name.rpartition(" on ")[2] for name in ledger.engines}
    device = prices.device("labeling", names.pop() if len(names) == 1 else None)
    return device.work(seconds=plan.engine_hours * HOUR, tokens=plan.tokens)


def _print(
    calibration: Calibration, plan: ClusterPlan, config: ClusterConfig, cost: str | None
) -> None:
    given = " (--tokens-per-s)" if config.tokens_per_s is not None else ""
    engines = f" with {config.engines_per_node} teachers each" * (config.engines_per_node > 1)
    lines = {
        "measured": f"{calibration.tokens_per_s:,.1f} tokens/s per teacher{given}, "
        f"{calibration.bytes_per_label:,.1f} bytes per label ({calibration.engine})",
        "corpus": f"{plan.tokens:,} tokens, {plan.labels:,} labels",
        "nodes": f"{plan.nodes:,}{engines}",
        "time": f"{human_seconds(plan.hours * HOUR)}, {plan.engine_hours:,.1f} teacher hours",
        "storage": f"{human_bytes(plan.bytes)} in {plan.units:,} shards",
        "writing": f"{human_bytes(plan.write_bytes_per_s)}/s at full speed",
    }
    if plan.store_hours is not None:
        lines["store"] = (
            f"{human_seconds(plan.store_hours * HOUR)} of writing at {config.store_mb_per_s:g} "
            f"MB/s; nodes beyond {plan.nodes_that_help:,} do not help"
        )
    if cost is not None:
        lines["cost"] = cost
    lines["bottleneck"] = _bottleneck(plan, config)
    for name, text in lines.items():
        out.print(f"{name:<12}{text}", soft_wrap=True, highlight=False)


def _bottleneck(plan: ClusterPlan, config: ClusterConfig) -> str:
    if plan.bottleneck == "disk":
        free = human_bytes((config.disk_gb or 0) * GIGA)
        return f"disk: {human_bytes(plan.bytes)} do not fit in {free}"
    if plan.bottleneck == "store":
        late = "" if plan.fits else f", which does not end in {config.hours:g} h"
        return f"the store's write bandwidth{late}"
    return "compute: more nodes are faster"
