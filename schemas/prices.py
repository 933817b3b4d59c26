"""The user's price table: what an hour of a device costs, or a million tokens on it. No torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from schemas import SoftshardsError
from schemas.ledger import Ledger
from schemas.printable import one_line
from schemas.yaml_settings import read_settings

SECONDS_PER_HOUR = 3600
MILLION = 1_000_000
HINT = """write `currency: EUR` and, under `devices:`, lines such as `cpu: {per_hour: 0.40}`"""

Role = Literal["labeling", "training", "teacher", "students"]


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):  # pydantic takes `yes` for 1
        raise ValueError("a price is a number")
    return value


Price = Annotated[float, BeforeValidator(_no_boolean), Field(gt=0, lt=1e12, allow_inf_nan=False)]


class _Part(BaseModel):
    """A part of the file; unlike results, it is typed by hand, so unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Device(_Part):
    """The price of a device, or of a service: exactly one of the two.

    Attributes:
        per_hour: price of an hour of all that works together under this name.
        per_million_tokens: price of a million tokens: generated, labeled or trained on.
    """

    per_hour: Price | None = None
    per_million_tokens: Price | None = None

    @model_validator(mode="after")
    def _has_one_price(self) -> Self:
        if (self.per_hour is None) == (self.per_million_tokens is None):
            raise ValueError("give `per_hour` or `per_million_tokens`, and not both")
        return self

    def work(self, *, seconds: float, tokens: float) -> float:
        """Return the price of some work.

        Args:
            seconds: for which the device was in use.
            tokens: that it worked through.
        """
        if self.per_hour is not None:
            return self.per_hour * seconds / SECONDS_PER_HOUR
        assert self.per_million_tokens is not None
        return self.per_million_tokens * tokens / MILLION

    def million_tokens(self, tokens_per_s: float | None) -> float | None:
        """Return the price of a million tokens; None if it depends on a speed that is not known."""
        if self.per_million_tokens is not None:
            return self.per_million_tokens
        if tokens_per_s is None or not tokens_per_s > 0:
            return None
        return self.work(seconds=MILLION / tokens_per_s, tokens=MILLION)


class Prices(_Part):
    """The content of prices.yaml.

    Attributes:
        currency: in which all prices are.
        devices: prices by device or service. A device of a label set's ledger is found here by the
            name that it has there.
        labeling: the device that labeled, where it is not named as in the ledger.
        training: the device that trained.
        teacher: the device or service on which the teacher would serve.
        students: the device on which the students serve.
    """

    currency: Annotated[str, Field(min_length=1, max_length=12)]
    devices: Annotated[dict[str, Device], Field(min_length=1)]
    labeling: str | None = None
    training: str | None = None
    teacher: str | None = None
    students: str | None = None

    @model_validator(mode="after")
    def _names_devices(self) -> Self:
        for role in ("labeling", "training", "teacher", "students"):
            name = getattr(self, role)
            if name is not None and name not in self.devices:
                raise ValueError(f"`{role}: {name}` names no device under `devices`")
        return self

    def device(self, role: Role, recorded: str | None = None) -> Device:
        """Return the device that did some work, or is to do it.

        Args:
            role: the work.
            recorded: the device's name in the record of the work.

        Raises:
            SoftshardsError: the table has several devices and does not say which.
        """
        name = getattr(self, role) or recorded
        if name in self.devices:
            return self.devices[name]
        if len(self.devices) == 1:
            return next(iter(self.devices.values()))
        ran = f", which ran on {recorded!r}" if recorded else ""
        raise SoftshardsError(
            f"the price table does not say which device is for `{role}`{ran}",
            hint=f"add `{role}: NAME`, with one of {', '.join(self.devices)}",
        )

    def labeling_cost(self, ledger: Ledger) -> float:
        """Return what a label set cost, engine by engine.

        Raises:
            SoftshardsError: as `device`.
        """
        return sum(
            self.device("labeling", name.rpartition(" on ")[2]).work(
                seconds=cost.engine_seconds, tokens=cost.tokens
            )
            for name, cost in ledger.engines.items()
        )


def read_prices(path: Path) -> Prices:
    """Read prices.yaml.

    Raises:
        SoftshardsError: it is missing or unreadable, has an unknown key, or a price that is not a
            number above 0; names the key.
    """
    content = read_settings(path)
    try:
        return Prices.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        what = f"{one_line(key)}: {reason}" if key else reason
        raise SoftshardsError(f"not a price table: {what}", path=path, hint=HINT) from error


def money(amount: float | None, currency: str) -> str:
    """Return an amount with its currency, to three significant digits."""
    if amount is None or not math.isfinite(amount):
        return "–"
    digits = f"{amount:,.2f}" if amount == 0 or abs(amount) >= 1 else f"{amount:.3g}"
    return f"{digits} {one_line(currency)}"
