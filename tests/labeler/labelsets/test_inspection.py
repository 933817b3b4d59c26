"""`labeler inspect`: its figures against NumPy on all rows at once, and its output."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeler.labelsets.common.vocabulary import open_vocabulary
from labeler.labelsets.inspect.histograms import FINE, Histogram, length_edges
from labeler.labelsets.inspect.inspect_report import print_rejects
from labeler.labelsets.inspect.summary import COVERAGE, NATS, summarize
from schemas import LabelSetError, bucketed_entropy, decode, open_label_set
from schemas.arrow import SPANS
from tests.labeler.command_line import CommandLine
from tests.labeler.conftest import Run
from tests.schemas.sets import CODECS, varied_table, write_set
from tests.schemas.test_view import every_other


def two_kinds(table: pa.Table) -> pa.Table:
    """Make the second half of each row an answer, and let row 2 repeat itself."""
    spans, tokens = [], table["input_ids"].to_pylist()
    tokens[2] = [7, 8, 9, 5] * 3
    tokens[2] = (tokens[2] * 9)[: table["n_tokens"][2].as_py()]
    for n in table["n_tokens"].to_pylist():
        half = n // 2
        cut = [(1, half, "text"), (half, n, "answer")] if n > 3 else [(1, n, "text")]
        spans.append([{"start": a, "stop": b, "kind": k} for a, b, k in cut if a < b])
    for name, column in (("spans", pa.array(spans, SPANS)), ("input_ids", pa.array(tokens))):
        place = table.column_names.index(name)
        table = table.set_column(place, table.schema.field(name), column.cast(table[name].type))
    return table


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sets by name: one per codec, with sources and two kinds of span, and a view."""
    folder = tmp_path_factory.mktemp("inspected")
    shards = [[two_kinds(varied_table(8 * s + 4 * g, 4)) for g in (0, 1)] for s in range(3)]
    paths = {codec[:-2]: write_set(folder / codec[:-2], shards, codec) for codec in CODECS}
    half = folder / "half.view.json"
    return paths | {"view": every_other(open_label_set(paths["plain"]), half, first=1)}


def everything(path: Path) -> tuple[list[dict[str, Any]], Any]:
    labels = open_label_set(path)
    tables = [labels.read_row_group(group) for group in labels.row_groups]
    table = pa.concat_tables(tables)
    return table.to_pylist(), decode(table).labels


@pytest.mark.parametrize("name", ["plain", "compact", "view"])
def test_figures_match_all_rows_at_once(sets: dict[str, Path], name: str) -> None:
    rows, labels = everything(sets[name])
    facts = summarize(sets[name], open_label_set(sets[name]))
    assert json.loads(json.dumps(facts))
    assert (facts["rows"], facts["labels"]) == (len(rows), len(labels))

    by_position = {
        "coverage": (1 - np.exp(labels.tail_logprob), COVERAGE),
        "entropy": (bucketed_entropy(labels), NATS),
        "nll": (-labels.token_logprob, NATS),
    }
    for quantity, (values, edges) in by_position.items():
        expected = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
        found = np.array(facts["histograms"][quantity]["counts"])
        assert np.abs(found - expected).sum() <= 2, "float32 at an edge"
        width = (edges[-1] - edges[0]) / FINE
        for q, value in facts[f"{quantity}_quantiles"].items():
            exact = np.quantile(np.clip(values, 0, edges[-1]), q, method="inverted_cdf")
            assert abs(value - exact) <= width
    lengths = [row["n_tokens"] for row in rows]
    middle = float(np.median(lengths))
    assert facts["row_tokens"] == {
        "shortest": min(lengths),
        "median": middle,
        "longest": max(lengths),
    }
    assert sum(facts["histograms"]["row_tokens"]["counts"]) == len(rows)

    def mean(column: str, some: list[dict[str, Any]]) -> float:
        weights = [row["n_labels"] for row in some]
        return float(np.average([row[column] or 0.0 for row in some], weights=weights))

    assert facts["mean_coverage"] == pytest.approx(mean("coverage", rows), abs=1e-4)
    assert {group["source"] for group in facts["sources"]} == {row["source"] for row in rows}
    for group in facts["sources"]:
        some = [row for row in rows if row["source"] == group["source"]]
        assert group["rows"] == len(some)
        assert group["labels"] == sum(row["n_labels"] for row in some)
        assert group["mean_nll"] == pytest.approx(mean("mean_nll", some), abs=1e-4)
        assert group["mean_coverage"] == pytest.approx(mean("coverage", some), abs=1e-4)
    kinds = [s["kind"] for row in rows for s in row["spans"] for _ in range(s["start"], s["stop"])]
    for group in facts["kinds"]:
        mine = np.array(kinds) == group["kind"]
        assert group["labels"] == mine.sum()
        assert group["mean_nll"] == pytest.approx(-labels.token_logprob[mine].mean(), abs=1e-3)

    labeled = [row for row in rows if row["n_labels"]]
    for kind, column, sign in (("highest NLL", "mean_nll", -1), ("lowest coverage", "coverage", 1)):
        expected = sorted(
            (row for row in labeled if row[column] is not None), key=lambda r: sign * r[column]
        )
        assert [r["id"] for r in facts["outliers"][kind]] == [r["id"] for r in expected[:5]]
    repeating = facts["outliers"]["most repetition"][0]
    if name != "view":  # the view has no row that repeats itself
        assert int(repeating["id"].split("/")[1]) % 4 == 2
        assert repeating["repetition"] > 0.3


@given(
    values=st.lists(st.floats(-2, 15), min_size=1, max_size=60),
    cut=st.integers(0, 60),
    q=st.floats(0.01, 0.99),
)
@settings(max_examples=80)
def test_a_histogram_in_parts_matches_the_whole(values: list[float], cut: int, q: float) -> None:
    parts, whole = Histogram(NATS), Histogram(NATS)
    for some in (values[:cut], values[cut:]):
        parts.add(np.array(some))
    whole.add(np.array(values))
    assert parts.counts.tolist() == whole.counts.tolist()
    assert parts.total == len(values)
    found = parts.quantile(q)
    exact = np.quantile(np.clip(values, 0, 12), q, method="inverted_cdf")
    assert found == whole.quantile(q)
    assert found == pytest.approx(exact, abs=12 / FINE)


@given(shortest=st.integers(0, 10_000), span=st.integers(0, 200_000))
def test_round_edges_hold_all_lengths(shortest: int, span: int) -> None:
    edges = length_edges(shortest, shortest + span)
    assert edges[0] <= shortest <= shortest + span < edges[-1]
    assert 2 <= len(edges) <= 12
    assert len({b - a for a, b in zip(edges, edges[1:])}) == 1  # noqa: RUF007


def test_rows_without_a_label(tmp_path: Path, labeler: CommandLine) -> None:
    path = write_set(tmp_path / "labels", [[varied_table(0, 1)]], CODECS[0])
    done = labeler("inspect", path)
    assert done.code == 0, done.err
    assert "labeled 0" in done.out
    facts = labeler("inspect", path, "--json").json
    assert facts["nll_quantiles"]["0.5"] is None
    assert facts["outliers"]["longest"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compact", "view"])
def test_the_printed_summary(sets: dict[str, Path], run_labeler: Run, name: str) -> None:
    done = run_labeler("inspect", sets[name], env={"COLUMNS": "100", "PATH": "/usr/bin"})
    sources = f"sources: {2 if name == 'view' else 3}"
    for part in ("mass in the top 6", "tokens per row", sources, "kinds of span: 2"):
        assert part in done.stdout
    assert re.search(r"most repetition +row/\d+ +\d+", done.stdout)
    assert re.search(r"a\.jsonl +\d+ +\d+ +\d\.\d{3}", done.stdout)
    assert "█" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100 + len(str(sets[name]))


@pytest.mark.slow
def test_a_row_is_shown_token_by_token(sets: dict[str, Path], run_labeler: Run) -> None:
    labels = open_label_set(sets["compact"])
    rows, _ = everything(sets["compact"])
    row = max(rows, key=lambda r: r["n_labels"])
    vocabulary = open_vocabulary(labels.tokenizer_dir, 300)
    asked = ("inspect", sets["compact"], "--row", row["id"])
    shown = json.loads(run_labeler(*asked, "--json", "--start", 3, "--positions", 4).stdout)
    assert [line["position"] for line in shown["labels"]] == [4, 5, 6, 7]
    for line in shown["labels"]:
        t = line["position"]
        assert line["id"] == row["input_ids"][t]
        assert line["token"] == vocabulary.texts[line["id"]]
        ids, logs = row["topk_ids"][t - 1][:5], row["topk_logprobs"][t - 1][:5]
        assert [token for token, _ in line["top"]] == [vocabulary.texts[i] for i in ids]
        np.testing.assert_allclose([p for _, p in line["top"]], np.exp(logs), atol=1e-3)
    colored = run_labeler(*asked, "--positions", 2, env={"FORCE_COLOR": "1", "PATH": "/usr/bin"})
    assert "next: --start 2" in colored.stdout
    running = re.findall(r"\x1b\[30;4[1-6]m", colored.stdout)
    assert len(running) >= row["n_labels"], "one color a labeled token, and the legend"
    missing = run_labeler("inspect", sets["compact"], "--row", "nobody", code=2)
    assert "no row has this id" in missing.stderr
    beyond = run_labeler(*asked, "--start", 9999, code=2)
    assert f"the row has {row['n_labels']} labels" in beyond.stderr


def test_a_view_has_the_rejects_of_its_set(
    sets: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    print_rejects(sets["view"], as_json=False)
    assert "0 rejects" in capsys.readouterr().out


def test_an_altered_set_is_not_summarized(tmp_path: Path) -> None:
    path = write_set(tmp_path / "labels", [[varied_table(0, 4)]], CODECS[1])
    shard = next((path / "shards").iterdir())
    content = bytearray(shard.read_bytes())
    content[len(content) // 4] ^= 1
    shard.write_bytes(content)
    with pytest.raises(LabelSetError, match="was altered"):
        summarize(path, open_label_set(path))
