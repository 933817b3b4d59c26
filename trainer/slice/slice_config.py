"""Settings of `trainer slice`. Attribute docstrings are its help text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cyclopts import Parameter

from schemas.errors import SoftshardsError


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SliceConfig:
    """The settings of `trainer slice`."""

    teacher: Path
    """Teacher to slice: the folder of a Hugging Face checkpoint, or OWNER/NAME on the Hub."""

    revision: str | None = None
    """Branch, tag or commit of a --teacher on the Hub; main by default."""

    labels: str | Path
    """Label set of *training* data to measure on."""

    out: Path
    """Folder for the student."""

    keep: int | None = None
    """Number of layers to keep; measurements choose them."""

    layers: str | None = None
    """Layers to keep instead, counted from 0 and separated by commas: 0,1,5."""

    stride: int | None = None
    """Keep every n-th layer instead: 2 keeps 0, 2, 4, ..."""

    ffn_keep: float = 1.0
    """Share of the neurons of each feed-forward block to keep: those with the highest activation
    times the norm of their output weights. Happens after layers are removed."""

    candidates: int = 4
    """Layers tried per removal: those that change their input least (block influence)."""

    sample_tokens: int = 2048
    """Label tokens to measure on."""

    seed: int = 0
    """Seed of the sample of rows."""

    dtype: Literal["fp32", "bf16"] = "fp32"
    """dtype of the measurements; the student is saved in the teacher's."""

    allow_partial: bool = False
    """Measure on a label set that is still being labeled."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SoftshardsError: names the flag.
        """
        ways = [way for way in (self.keep, self.layers, self.stride) if way is not None]
        if len(ways) > 1 or not (ways or self.ffn_keep < 1):
            raise SoftshardsError("give one of --keep, --layers and --stride, or --ffn-keep alone")
        for name in ("keep", "stride", "candidates", "sample_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SoftshardsError(
                    f"--{name.replace('_', '-')} is {value}; it must be at least 1"
                )
        if not 0 < self.ffn_keep <= 1:
            raise SoftshardsError(f"--ffn-keep is {self.ffn_keep}; it must be above 0, at most 1")
        _ = self.chosen(1)

    def chosen(self, count: int) -> list[int] | None:
        """Return the layers to keep of `count`, or None if --keep leaves it to measurements."""
        if self.keep is not None:
            return None
        if self.layers is None:
            return list(range(0, count, self.stride or 1))
        try:
            chosen = [int(part) for part in self.layers.split(",")]
        except ValueError as error:
            raise SoftshardsError(f"--layers is {self.layers!r}; it must be like 0,1,5") from error
        if chosen != sorted(set(chosen)) or chosen[0] < 0:
            raise SoftshardsError("--layers must be ascending, each layer once, from 0")
        return chosen
