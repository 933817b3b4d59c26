"""Price tables: hand-computed costs and break-even, and tables that are refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from schemas import SoftshardsError
from schemas.ledger import EngineCost, Ledger, read_ledger
from schemas.prices import Device, Prices, money, read_prices
from trainer.report.break_even import Savings, break_even, savings

TABLE = """
currency: EUR
devices:
  cpu: {per_hour: 0.36}
  NVIDIA H100: {per_hour: 3.60}
  api: {per_million_tokens: 2.5}
training: NVIDIA H100
teacher: api
students: cpu
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "prices.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def ledger(**seconds: float) -> Ledger:
    """Return a ledger of 1,000 tokens per device; `_` stands for a blank."""
    engines = {
        f"vllm 0.32.0 on {name.replace('_', ' ')}": EngineCost(
            engine_seconds=value, tokens=1000, labels=900, tokens_per_s=1.0
        )
        for name, value in seconds.items()
    }
    return Ledger(engines=engines)


def price(prices: Prices, *ledgers: Ledger | None, speed: float | None = 50.0) -> Savings:
    return savings(
        prices,
        teacher_speed=20.0,
        student_speed=speed,
        ledgers=ledgers,
        training_seconds=600.0,
        training_tokens=30_000,
    )


def test_costs_are_the_ones_computed_by_hand(tmp_path: Path) -> None:
    prices = read_prices(write(tmp_path, TABLE))
    found = price(prices, ledger(cpu=1000.0, NVIDIA_H100=500.0), ledger(cpu=200.0))
    # 1,000 s and 200 s at 0.0001 EUR, 500 s at 0.001 EUR
    assert found.labeling == pytest.approx(0.1 + 0.5 + 0.02)
    assert found.training == pytest.approx(0.6)  # 600 s at 0.001 EUR
    assert found.teacher == 2.5  # the API's price, whatever its speed
    assert found.student == pytest.approx(2.0)  # 1,000,000 / 50 = 20,000 s at 0.0001 EUR
    assert found.share == pytest.approx(0.2)
    # 1.22 EUR are saved after 1.22 / (0.5 per million) tokens
    assert found.break_even == pytest.approx(2_440_000)
    assert found.pays


def test_one_device_does_everything(tmp_path: Path) -> None:
    prices = read_prices(write(tmp_path, "currency: €\ndevices: {mine: {per_hour: 3600}}\n"))
    found = price(prices, ledger(cpu=40.0))  # a second costs 1
    assert (found.labeling, found.training) == (40.0, 600.0)
    assert found.teacher == pytest.approx(50_000)
    assert found.student == pytest.approx(20_000)
    # the same as in seconds: 640 / (1/20 - 1/50)
    assert found.break_even == pytest.approx(break_even(640.0, 1 / 20, 1 / 50))


def test_labels_bought_by_the_token(tmp_path: Path) -> None:
    table = "currency: EUR\ndevices: {api: {per_million_tokens: 4}, cpu: {per_hour: 1}}\n"
    roles = "labeling: api\ntraining: api\nteacher: api\nstudents: cpu\n"
    found = price(read_prices(write(tmp_path, table + roles)), ledger(cpu=9.0))
    assert found.labeling == pytest.approx(0.004)  # 1,000 tokens
    assert found.training == pytest.approx(0.12)  # 30,000 tokens


@pytest.mark.parametrize(
    ("spent", "teacher", "student", "tokens"),
    [
        (100.0, 0.05, 0.03, 5000.0),
        (0.0, 0.05, 0.03, 0.0),
        (100.0, 0.03, 0.05, math.inf),  # a student that is slower than its teacher
        (100.0, 0.05, 0.05, math.inf),
        (0.0, 0.05, 0.05, math.inf),
    ],
)
def test_break_even(spent: float, teacher: float, student: float, tokens: float) -> None:
    assert break_even(spent, teacher, student) == pytest.approx(tokens)


def test_what_was_not_measured_stays_unknown(tmp_path: Path) -> None:
    prices = read_prices(write(tmp_path, TABLE))
    assert price(prices, ledger(cpu=1.0), speed=None).pays is None
    assert price(prices, ledger(cpu=1.0), speed=None).break_even is None
    for ledgers in ((), (None,), (ledger(cpu=1.0), None)):
        found = price(prices, *ledgers)
        assert (found.labeling, found.break_even) == (None, None)
        assert found.share == pytest.approx(0.2)
    dear = price(prices, ledger(cpu=1.0), speed=10.0)
    assert (dear.share, dear.pays, dear.break_even) == (pytest.approx(-3.0), False, None)


def test_a_device_that_the_table_does_not_name(tmp_path: Path) -> None:
    prices = read_prices(write(tmp_path, TABLE))
    with pytest.raises(SoftshardsError, match="`labeling`, which ran on 'A100'") as caught:
        prices.labeling_cost(ledger(A100=1.0))
    assert "add `labeling: NAME`, with one of cpu, NVIDIA H100, api" in str(caught.value.hint)
    with pytest.raises(SoftshardsError, match="for `students`"):
        Prices(currency="x", devices={"a": Device(per_hour=1), "b": Device(per_hour=2)}).device(
            "students"
        )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (TABLE.replace("0.36", "0"), "devices.cpu.per_hour: Input should be greater than 0"),
        (TABLE.replace("0.36", "-1"), "devices.cpu.per_hour: Input should be greater than 0"),
        (TABLE.replace("0.36", ".nan"), "devices.cpu.per_hour: Input should be"),
        (TABLE.replace("0.36", ".inf"), "devices.cpu.per_hour: Input should be"),
        (TABLE.replace("0.36", "yes"), "devices.cpu.per_hour: a price is a number"),
        (TABLE.replace("0.36", "cheap"), "devices.cpu.per_hour: Input should be a valid number"),
        (TABLE.replace("per_hour: 0.36", ""), "devices.cpu: give `per_hour` or"),
        (TABLE.replace("0.36", "0.36, per_million_tokens: 1"), "devices.cpu: give `per_hour` or"),
        (TABLE.replace("0.36", "0.36, per_day: 1"), "devices.cpu.per_day: Extra inputs"),
        (TABLE.replace("currency: EUR", ""), "currency: Field required"),
        (TABLE.replace("students: cpu", "students: tpu"), "`students: tpu` names no device"),
        (TABLE + "student: cpu\n", "student: Extra inputs"),
        ("currency: EUR\ndevices: {}\n", "devices: Dictionary should have at least 1 item"),
        ("", "Input should be a valid dictionary"),
        ("- 1\n", "Input should be a valid dictionary"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SoftshardsError) as caught:
        read_prices(path)
    assert reason in caught.value.what
    assert caught.value.path == path
    assert caught.value.hint


def test_a_missing_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SoftshardsError, match="no such file"):
        read_prices(tmp_path / "none.yaml")


@pytest.mark.parametrize("seconds", ["-1", "NaN", "Infinity"])
def test_a_ledger_of_impossible_times_is_refused(tmp_path: Path, seconds: str) -> None:
    text = ledger(cpu=1.0).model_dump_json().replace('"engine_seconds":1.0', "@")
    assert "@" in text
    (tmp_path / "ledger.json").write_text(text.replace("@", f'"engine_seconds":{seconds}'))
    with pytest.raises(SoftshardsError, match="cannot be read as a label set's ledger"):
        read_ledger(tmp_path)


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (1234.5, "1,234.50 EUR"),
        (0.0123456, "0.0123 EUR"),
        (0.0, "0.00 EUR"),
        (None, "–"),
        (math.inf, "–"),
    ],
)
def test_amounts_are_short(amount: float | None, text: str) -> None:
    assert money(amount, "EUR") == text
