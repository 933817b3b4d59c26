"""What `trainer evaluate` and `labeler bench` measured, and which model it belongs to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from schemas import SoftshardsError
from schemas.fingerprint import weights_digest


def read_results(path: Path, what: str, needed: tuple[str, ...]) -> dict[str, Any]:
    """A JSON file with certain keys.

    Raises:
        SoftshardsError: it is something else.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        missing = [name for name in needed if name not in content]
    except (OSError, ValueError, TypeError) as error:
        raise SoftshardsError(f"cannot be read as {what}", path=path) from error
    if missing:
        raise SoftshardsError(f"not {what}: no {', '.join(missing)}", path=path)
    return content


def measured(model: Path, results: dict[str, Any]) -> dict[str, Any]:
    """What `trainer evaluate` says about a model, found by its weights: paths may have moved.

    Raises:
        SoftshardsError: there is no model, or it was not measured.
    """
    try:
        digest = weights_digest(model)
    except FileNotFoundError as error:
        raise SoftshardsError("there is no model here", path=model) from error
    for entry in results["models"]:
        if entry["weights"] == digest:
            return entry
    raise SoftshardsError(
        "this model was not measured",
        path=model,
        hint=f"run `trainer evaluate --model {model}` with the --labels and --out of the others",
    )


def speeds(
    bench: dict[str, Any] | None, name: str, places: list[Path]
) -> tuple[float | None, float | None]:
    """Tokens/s of reading and of generating, found by path, else by name."""
    models = (bench or {}).get("models", [])
    resolved = {place.resolve() for place in places}
    by_path = [m for m in models if Path(m["model"]).resolve() in resolved]
    for entry in by_path or [m for m in models if m.get("name") == name]:
        return float(entry["score_tokens_per_s"]), float(entry["generate_tokens_per_s"])
    return None, None
