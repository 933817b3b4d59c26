"""Flags of `trainer train` and `trainer slice` as keys and values of a YAML file."""

from __future__ import annotations

import difflib
import re
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from cyclopts import App, CycloptsError
from cyclopts.config import Dict
from pydantic import JsonValue

from schemas import SoftshardsError
from schemas.whole_numbers import refuse_fractions
from trainer.slice.slice_config import SliceConfig
from trainer.train.train_config import TrainConfig

Config = TypeVar("Config", TrainConfig, SliceConfig)


def flag_name(key: object, where: str, config: type, path: Path) -> str:
    """Return the field of `config` that a key names, spelled with - or _.

    Raises:
        SoftshardsError: there is none; the hint names the nearest one.
    """
    name = str(key).replace("-", "_")
    if name in _field_names(config):
        return name
    near = nearest_flag(name, config)
    raise SoftshardsError(
        f"{where}: there is no flag {key}", path=path, hint=f"did you mean {near}?" if near else ""
    )


def nearest_flag(name: str, config: type) -> str | None:
    """Return the field of `config` whose spelling is nearest to `name`, or None."""
    near = difflib.get_close_matches(name.replace("-", "_"), _field_names(config), n=1)
    return near[0] if near else None


def parse_settings(
    kind: type[Config], settings: dict[str, JsonValue], where: str, path: Path
) -> Config:
    """Parse settings as `trainer train --config` does, by the same parser.

    Raises:
        SoftshardsError: a flag does not take its value, or is missing.
    """

    def take(config: Config) -> Config:
        return config

    take.__annotations__["config"] = kind
    app = App(config=(Dict(settings), refuse_fractions))
    app.default(take)
    try:
        command, bound, _ = app.parse_args([], exit_on_error=False, print_error=False)
        parsed: Config = command(*bound.args, **bound.kwargs)
    except CycloptsError as error:
        raise SoftshardsError(f"{where}: {error}".replace(" from dict", ""), path=path) from error
    except SoftshardsError as error:
        raise SoftshardsError(f"{where}: {error}", path=path) from error
    return parsed


def name_part(flag: str, value: object) -> str:
    """Return a value's part of a trial's name: a student's folder, else flag=value."""
    if flag == "student":
        return slug(Path(str(value)).name)
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return slug(f"{flag}={text}")


def slug(text: str) -> str:
    """Replace the characters that are not harmless in a file name everywhere."""
    return re.sub(r"[^A-Za-z0-9._=+-]+", "-", text).strip("-.") or "unnamed"


def _field_names(config: type) -> list[str]:
    return [field.name for field in fields(config)]
