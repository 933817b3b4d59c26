"""The work that every model does for `labeler bench`, and what its process answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from schemas import SoftshardsError, open_label_set
from schemas.manifest import ExtensibleModel


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A model to measure.

    Attributes:
        path: its folder.
        source: the folder, or its name and commit on the Hub.
        weights: their digest.
    """

    name: str
    path: Path
    source: str
    weights: str


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The work of every model: sequences of a label set, read and continued.

    Attributes:
        sequences: at once, for tokens per second.
        concurrency: numbers of requests at once, for latencies.
        repeats: rounds.
    """

    labels: str
    sequences: int
    concurrency: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int
    repeats: int
    dtype: str
    kv_cache_gb: float

    def facts(self) -> dict[str, str | int | float]:
        """Return the settings, as results keep them."""
        return asdict(self) | {"concurrency": ", ".join(map(str, self.concurrency))}

    @property
    def levels(self) -> tuple[int, ...]:
        """All numbers of requests at once, each measured once a round."""
        return tuple(sorted({self.sequences, *self.concurrency}))

    @property
    def length(self) -> int:
        """Tokens of a sequence in the end."""
        return self.prompt_tokens + self.new_tokens


class Loaded(ExtensibleModel):
    """The first answer of a model's process."""

    engine: str
    device: str
    load_seconds: float


class Wave(ExtensibleModel):
    """Requests that arrive at once, until the last one is answered.

    Attributes:
        requests: their number.
        first_token_s, last_token_s: seconds to a request's first and last token: the median.
        reading_s: seconds until every request has its first token.
        generating: tokens per second after that.
        seconds: until the end.
        joules: energy of the device until the end; None where it is not known.
        energy_source: the counter, or what estimated it.
        energy_is_estimated: no counter measured it.
    """

    requests: int
    first_token_s: float
    last_token_s: float
    reading_s: float
    generating: float
    seconds: float
    joules: float | None = None
    energy_source: str | None = None
    energy_is_estimated: bool = False


class Round(ExtensibleModel):
    """The answer of a model's process to each request for a round.

    Attributes:
        waves: one per level of the workload.
        peak_memory_bytes: largest memory so far.
    """

    waves: tuple[Wave, ...]
    peak_memory_bytes: int


def read_prompts(workload: Workload) -> list[list[int]]:
    """Return the label set's tokens, row after row, cut into prompts of equal length.

    There is one per sequence of the largest level. Where the set has fewer tokens, prompts occur
    again: the engine's prefix cache is off, so each is read in full.

    Raises:
        SoftshardsError: the set has not enough tokens for one prompt, or cannot be opened.
    """
    labels = open_label_set(workload.labels)
    size, count = workload.prompt_tokens, max(workload.levels)
    tokens: list[int] = []
    for group in labels.row_groups:
        for ids in labels.read_row_group(group, columns=["input_ids"])["input_ids"].to_pylist():
            tokens += ids
        if len(tokens) >= count * size:
            break
    prompts = [tokens[at : at + size] for at in range(0, len(tokens) - size + 1, size)]
    if not prompts:
        raise SoftshardsError(
            f"the label set has {len(tokens)} tokens, a prompt needs {size}",
            path=workload.labels,
            hint="lower --prompt-tokens",
        )
    return [prompts[number % len(prompts)] for number in range(count)]
