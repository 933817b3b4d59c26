"""Flags of `trainer train` and `trainer slice` as keys and values of a YAML file."""

from __future__ import annotations

import difflib
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from cyclopts import App, CycloptsError
from cyclopts.config import Dict

from schemas import SoftshardsError
from trainer.slice.slice_config import SliceConfig
from trainer.train.train_config import TrainConfig

Config = TypeVar("Config", TrainConfig, SliceConfig)


def flag_name(key: Any, where: str, config: type, path: Path) -> str:
    """The field of `config` that a key means, spelled with - or _.

    Raises:
        SoftshardsError: none; with the nearest one.
    """
    name = str(key).replace("-", "_")
    if name in {f.name for f in fields(config)}:
        return name
    near = nearest(name, config)
    raise SoftshardsError(
        f"{where}: there is no flag {key}", path=path, hint=f"did you mean {near}?" if near else ""
    )


def nearest(name: str, config: type) -> str | None:
    """The field of `config` that is spelled most like `name`, or None."""
    known = [f.name for f in fields(config)]
    return next(iter(difflib.get_close_matches(name.replace("-", "_"), known, n=1)), None)


def parse(kind: type[Config], settings: dict[str, Any], where: str, path: Path) -> Config:
    """Settings as `trainer train --config` would take them, by the same parser.

    Raises:
        SoftshardsError: a value that a flag does not take, or a flag that is missing.
    """

    def take(config: Any) -> Any:
        return config

    take.__annotations__["config"] = kind
    app = App(config=Dict(settings))
    app.default(take)
    try:
        command, bound, _ = app.parse_args([], exit_on_error=False, print_error=False)
        parsed: Config = command(*bound.args, **bound.kwargs)
    except CycloptsError as error:
        raise SoftshardsError(f"{where}: {error}".replace(" from dict", ""), path=path) from error
    except SoftshardsError as error:
        raise SoftshardsError(f"{where}: {error}", path=path) from error
    return parsed


def spell(flag: str, value: Any) -> str:
    """A value's part of the name: a student's folder, else flag=value."""
    if flag == "student":
        return slug(Path(str(value)).name)
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return slug(f"{flag}={text}")


def slug(text: str) -> str:
    """Only what is harmless in a file name everywhere."""
    return re.sub(r"[^A-Za-z0-9._=+-]+", "-", text).strip("-.") or "unnamed"
