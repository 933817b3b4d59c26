"""Settings of `trainer export`. Attribute docstrings are its help text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from schemas.errors import SoftshardsError

Format = Literal["gguf:f16", "gguf:q8_0", "gguf:q4_0", "int8"]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The settings of `trainer export`."""

    to: Format
    """Format: a GGUF file for llama.cpp in 16, 8 or 4 bits, or a checkpoint in int8 (W8A8) for
    vLLM."""

    out: Path
    """Folder for the exported model and its record, export.json."""

    labels: str | Path | None = None
    """Held-out label set: run the exported model on it in its runtime, and the student beside it.
    GGUF needs xllamacpp, int8 needs vLLM. An export that does not run there is not kept."""

    sample_labels: int = 4096
    """Labels to measure on: rows in a seeded order, until they have so many."""

    threads: int | None = None
    """Threads of llama.cpp in the measurement; one per physical core by default."""

    llama_cpp: Path | None = None
    """Folder of a llama.cpp checkout whose converter to use, or LLAMA_CPP in the environment;
    without it, the one that this version was tested with is fetched once by pip."""

    vocab_map: bool = False
    """Measure a student whose tokenizer shares almost all tokens with the teacher's (see `trainer
    train --help`)."""

    allow_partial: bool = False
    """Measure on a label set that is still being labeled."""

    json: Annotated[bool, Parameter(negative="")] = False
    """Print the record as JSON on stdout."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SoftshardsError: names the flag.
        """
        for flag, value in (("--sample-labels", self.sample_labels), ("--threads", self.threads)):
            if value is not None and value < 1:
                raise SoftshardsError(f"{flag} is {value}; it must be at least 1")
