"""The option --config of both commands: a command's flags in a YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.whole_numbers import refuse_fractions

if TYPE_CHECKING:
    from cyclopts import App


def run_with_flags(app: App, tokens: Sequence[str], config: Path | None) -> int | None:
    """Run a command with the flags on the command line and, below them, those of a file.

    Returns:
        The command's exit code.

    Raises:
        SoftshardsError: `config` cannot be read or does not map flags to values.
    """
    tokens = name_cluster(tokens)
    sources = app.config
    app.config = (*_read(config), refuse_fractions)
    try:
        code: int | None = app(tokens, result_action="return_value", exit_on_error=True)
    finally:
        app.config = sources  # the next call in this process starts without the file
    return code


def name_cluster(tokens: Sequence[str]) -> list[str]:
    """Return the tokens with `--ray auto` for a `--ray` at the end or before another flag."""
    after = (*tokens[1:], "-")
    pairs = zip(tokens, after, strict=True)
    named = [[t, "auto"] if t == "--ray" and a.startswith("-") else [t] for t, a in pairs]
    return [token for part in named for token in part]


def _read(config: Path | None) -> list[object]:
    if config is None:
        return []
    from cyclopts.config import Yaml

    from schemas.yaml_settings import check_flags

    check_flags(config)
    return [Yaml(config, must_exist=True, search_parents=False, use_commands_as_keys=False)]
