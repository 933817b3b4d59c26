"""What transformers says of a checkpoint, kept in the user's cache: to ask it costs seconds.

A label set that is finished needs nothing else of its teacher, and a set that is resumed has its
token ids in the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from schemas.atomic import write_atomic
from schemas.cache_folder import cache_folder
from schemas.fingerprint import sha256_file, sha256_json, weights_digest
from schemas.version import __version__

ChatTemplate = str | dict[str, str]
"""The source of a template, or of several by name."""

FOLDER = "teachers"
TEMPLATES = "chat_templates"
"""Folder of a checkpoint's further templates."""
WEIGHTS, MOST_BYTES = (".safetensors", ".bin"), 1 << 28
"""Suffixes of weights, whose headers are hashed instead; larger files are weights too."""


class CheckpointFacts(BaseModel):
    """Facts of a checkpoint's tokenizer and configuration; see `Teacher`.

    Attributes:
        context: None if the configuration names none.
        stop_ids: without `unknown_stop_ids`, those beyond the tokenizer's ids.
        layers: number of decoder layers; width: of a hidden state; None where it is not named.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    vocab_size: int
    context: int | None
    dtype: str
    stop_ids: tuple[int, ...]
    unknown_stop_ids: tuple[int, ...]
    chat_template: ChatTemplate | None
    layers: int | None
    width: int | None


def remembered_facts(path: Path, read: Callable[[], CheckpointFacts]) -> CheckpointFacts:
    """Return the facts of a checkpoint, from an earlier call if its files are the same.

    Args:
        path: the checkpoint's folder.
        read: asks transformers.
    """
    file = cache_folder() / FOLDER / f"{_digest(path)}.json"
    with suppress(OSError, ValueError):
        return CheckpointFacts.model_validate_json(file.read_bytes())
    facts = read()
    with suppress(OSError):  # the cache saves time, and is needed for nothing
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(file, facts.model_dump_json())
    return facts


def _digest(path: Path) -> str:
    """Return a digest of all that the facts depend on."""
    weights = None
    with suppress(FileNotFoundError):
        weights = weights_digest(path, full=False)
    files = {str(file.relative_to(path)): sha256_file(file) for file in _small_files(path)}
    return sha256_json([__version__, version("transformers"), weights, files])


def _small_files(path: Path) -> Iterator[Path]:
    for file in sorted((*path.iterdir(), *(path / TEMPLATES).glob("*"))):
        if file.is_file() and file.suffix not in WEIGHTS and file.stat().st_size < MOST_BYTES:
            yield file
