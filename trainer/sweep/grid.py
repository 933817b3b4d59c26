"""From students.yaml to named trials. No torch, no Ray."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import JsonValue

from schemas import SoftshardsError
from schemas.yaml_settings import read_settings
from trainer.slice.slice_config import SliceConfig
from trainer.sweep.flags import flag_name, name_part, nearest_flag, parse_settings, slug
from trainer.train.train_config import TrainConfig

TRIALS = "trials"
STUDENTS = "students"
SECTIONS = ("base", "slices", "grid", "runs")
SET_BY_SWEEP = frozenset({"out", "resume", "pause_after", "dry_run", "json"})
"""Flags of `trainer train` that the sweep sets itself."""
SHARED = frozenset({"labels", "eval_labels", "allow_partial"})
"""Flags that must be the same in all trials: otherwise they could not be compared."""
LONGEST_NAME = 120

Settings = dict[str, JsonValue]
"""Flags and their values, as YAML gives them."""
Parts = list[tuple[str, str | None]]
"""Parts of a name: an axis or flag, and the name of its value (None: the value itself)."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One student to train.

    Attributes:
        name: of its folder; made of the settings that are special to it, so that it stays when
            trials are added.
        label: the name without the seed: shared by trials that differ only in the seed.
        settings: for `trainer train --config`, without --out.
        config: the parsed settings.
    """

    name: str
    label: str
    settings: Settings
    config: TrainConfig

    @property
    def folder(self) -> Path:
        """OUT/trials/NAME."""
        return self.config.out


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The content of a students.yaml; `slices` are students to cut out of a teacher first."""

    trials: list[Trial]
    slices: list[SliceConfig]


def read_sweep(path: Path, out: Path) -> Sweep:
    """Read students.yaml.

    Args:
        path: YAML with `base` (flags of `trainer train`), `grid` (axis -> values, all combinations)
            and `runs` (a list of flags), and `slices` (name -> flags of `trainer slice`).
        out: folder of the sweep.

    Raises:
        SoftshardsError: the file is unreadable, has an unknown key (the hint names the nearest
            one), a value that a flag does not take, two trials with one name, or no held-out
            labels.
    """
    content = load_sections(path, SECTIONS)
    base = check_settings(_mapping(content, "base", path), "base", path)
    for needed in ("labels", "eval_labels"):
        if needed not in base:
            why = "train" if needed == "labels" else "measure every student"
            raise SoftshardsError(f"base has no {needed}: the label set to {why} on", path=path)
    return combine(content, base, out, path)


def combine(content: Settings, base: Settings, out: Path, path: Path) -> Sweep:
    """Return the trials of `grid` and `runs`, and the students of `slices`.

    Args:
        content: the sections.
        base: flags for all trials, with `labels`.
        out: folder of the sweep.
        path: of the file, for errors.

    Raises:
        SoftshardsError: as `read_sweep`.
    """
    slices = _slices(_mapping(content, "slices", path), base, out, path)
    asked = [*_combinations(_mapping(content, "grid", path), path)]
    asked += [_run(i, run, path) for i, run in enumerate(_list(content, "runs", path))]
    if not asked:
        raise SoftshardsError("there is no trial in it", path=path, hint="add `grid` or `runs`")
    trials: dict[str, Trial] = {}
    for parts, own in asked:
        settings = base | own
        if (made := slices.get(str(settings.get("student")))) is not None:
            settings["student"] = str(made.out)
        trial = _trial(parts, settings, out, f"trial {own}", path)
        if trial.name in trials or len(trial.name) > LONGEST_NAME:
            what = "two trials are named" if trial.name in trials else "the name is too long:"
            raise SoftshardsError(
                f"{what} {trial.name}",
                path=path,
                hint="name the values in `grid` (`student: {small: PATH, large: PATH}`) or give "
                "each of `runs` a `name`",
            )
        trials[trial.name] = trial
    return Sweep(trials=list(trials.values()), slices=list(slices.values()))


def _trial(parts: Parts, settings: Settings, out: Path, where: str, path: Path) -> Trial:
    config = parse_settings(TrainConfig, settings | {"out": str(out)}, where, path)
    values = config.to_dict()
    # From the parsed value: 1e-3 and 0.001 give one name.
    texts = [(key, name_part(key, values[key]) if text is None else text) for key, text in parts]
    name = "_".join(text for _, text in texts)
    return Trial(
        name=name,
        label="_".join(text for key, text in texts if key != "seed") or name,
        settings={key: values[key] for key in settings},
        config=replace(config, out=out / TRIALS / name),
    )


def load_sections(path: Path, sections: tuple[str, ...]) -> Settings:
    """Read a YAML file that has these keys.

    Raises:
        SoftshardsError: it is unreadable, or has another key; the hint says where a flag belongs.
    """
    content = read_settings(path)
    if not isinstance(content, dict):
        raise SoftshardsError(f"it must have the keys {', '.join(sections)}", path=path)
    for key in content:
        if key not in sections:
            hint = f"its keys are {', '.join(sections)}"
            if nearest_flag(str(key), TrainConfig):
                hint += "; flags for all trials belong under `base`"
            raise SoftshardsError(f"unknown key {key}", path=path, hint=hint)
    return content


def _mapping(content: Settings, name: str, path: Path) -> Settings:
    value = content.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SoftshardsError(f"{name} must be a mapping", path=path)
    return value


def _list(content: Settings, name: str, path: Path) -> list[JsonValue]:
    value = content.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise SoftshardsError(f"{name} must be a list", path=path)
    return value


def _slices(section: Settings, base: Settings, out: Path, path: Path) -> dict[str, SliceConfig]:
    found = {}
    for key, flags in section.items():
        name, where = slug(str(key)), f"slices.{key}"
        if not isinstance(flags, dict):
            raise SoftshardsError(f"{where} must be flags of `trainer slice`", path=path)
        own = {flag_name(k, where, SliceConfig, path): value for k, value in flags.items()}
        given = {"labels": base["labels"], **own, "out": str(out / STUDENTS / name)}
        found[str(key)] = parse_settings(SliceConfig, given, where, path)
    return found


def _combinations(grid: Settings, path: Path) -> Iterator[tuple[Parts, Settings]]:
    """Yield all combinations of the axes' values, the last axis fastest."""
    if not grid:
        return
    axes = [list(_values(str(axis), values, path)) for axis, values in grid.items()]
    for chosen in itertools.product(*axes):
        merged: Settings = {}
        for _, own in chosen:
            for flag in own.keys() & merged.keys():
                raise SoftshardsError(f"grid: {flag} is on two axes", path=path)
            merged |= own
        yield [part for part, _ in chosen], merged


def _values(
    axis: str, values: object, path: Path
) -> Iterator[tuple[tuple[str, str | None], Settings]]:
    """Yield each value of an axis: its part of the name, and the flags that it sets."""
    where = f"grid.{axis}"
    if isinstance(values, list) and values:
        flag = flag_name(axis, where, TrainConfig, path)
        for value in values:
            yield (flag, None), _check_own_flags({flag: value}, where, path)
    elif isinstance(values, dict) and values:
        for label, value in values.items():
            own = value if isinstance(value, dict) else {axis: value}
            yield (axis, slug(str(label))), _check_own_flags(own, where, path)
    else:
        raise SoftshardsError(f"{where} must be a list of values, or names of values", path=path)


def _run(index: int, run: object, path: Path) -> tuple[Parts, Settings]:
    where = f"runs[{index}]"
    if not isinstance(run, dict) or not run:
        raise SoftshardsError(f"{where} must be flags of `trainer train`", path=path)
    flags = {key: value for key, value in run.items() if key != "name"}
    own = _check_own_flags(flags, where, path)
    parts: Parts = [(flag, None) for flag in own]
    if "name" in run:
        parts = [("name", slug(str(run["name"])))]
    return parts, own


def _check_own_flags(flags: Settings, where: str, path: Path) -> Settings:
    """Return the flags of one trial by their fields' names; refuse those that all must share."""
    own = check_settings(flags, where, path)
    for flag in SHARED & own.keys():
        raise SoftshardsError(
            f"{where} sets {flag}, which must be the same for all trials",
            path=path,
            hint="set it under `base`; another label set needs another sweep, or `trainer select`",
        )
    return own


def check_settings(flags: Settings, where: str, path: Path) -> Settings:
    """Return flags by their fields' names; refuse those that the sweep sets."""
    own = {flag_name(key, where, TrainConfig, path): value for key, value in flags.items()}
    for flag in SET_BY_SWEEP & own.keys():
        raise SoftshardsError(f"{where} sets {flag}, which the sweep sets itself", path=path)
    return own
