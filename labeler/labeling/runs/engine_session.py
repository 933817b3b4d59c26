"""The engine of a run, loaded again with smaller steps when its memory runs out."""

from __future__ import annotations

import time
from collections.abc import Callable

from labeler.console import err
from labeler.labeling.engines.engine import Engine, EngineOutOfMemory, Failed, Labeled, Request

SMALLEST_STEP = 32
"""Tokens per engine step; where these do not fit in memory, fewer would not either."""


class EngineSession:
    """A loaded engine that survives running out of memory.

    Args:
        load: loads the engine with steps of at most so many tokens.
        batched_tokens: tokens per step to start with.
    """

    def __init__(self, load: Callable[[int], Engine], batched_tokens: int) -> None:
        self._load, self._batched_tokens = load, batched_tokens
        self.engine = self._load_with_smaller_steps()

    def label(
        self, requests: list[Request], note: Callable[[str], None]
    ) -> tuple[list[Labeled], list[Failed]]:
        """Label the requests of a unit; call `note` with the progress and the speed."""
        while True:
            try:
                return _outcomes(self.engine, requests, note)
            except EngineOutOfMemory as error:
                self._halve(error)
            # Nothing holds the failed engine's frames here any more.
            self.close()
            self.engine = self._load_with_smaller_steps()

    def _load_with_smaller_steps(self) -> Engine:
        while True:
            try:
                return self._load(self._batched_tokens)
            except EngineOutOfMemory as error:
                self._halve(error)

    def _halve(self, error: EngineOutOfMemory) -> None:
        smaller = self._batched_tokens // 2
        if smaller < SMALLEST_STEP:
            raise error
        err.print(
            f"the engine ran out of memory with steps of {self._batched_tokens} tokens: "
            f"loading it again with {smaller} (--max-batched-tokens)",
            style="yellow",
        )
        self._batched_tokens = smaller

    def close(self) -> None:
        """Free the engine, if one is loaded: loading it again may have failed."""
        if hasattr(self, "engine"):
            self.engine.close()
            del self.engine


def _outcomes(
    engine: Engine, requests: list[Request], note: Callable[[str], None]
) -> tuple[list[Labeled], list[Failed]]:
    labeled: list[Labeled] = []
    failed: list[Failed] = []
    labels, clock = 0, time.perf_counter()
    for outcome in engine.run(requests):
        if isinstance(outcome, Labeled):
            labeled.append(outcome)
            labels += len(outcome.labels)
        else:
            failed.append(outcome)
        count = len(labeled) + len(failed)
        speed = labels / (time.perf_counter() - clock)
        note(f"| {count}/{len(requests)} of this unit, {speed:,.0f} labels/s")
    return labeled, failed
