"""Signals that end a run: the first waits for the unit in work, the second does not."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal that ends the run now; `exit_code` is what a shell expects of a killed command."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class Stop:
    """Whether the run was asked to stop.

    Attributes:
        requested: no further unit is to begin.
        signal: the signal that asked, or None.
    """

    def __init__(self) -> None:
        self.requested = False
        self.signal: signal.Signals | None = None
        self._finishing = False

    @contextlib.contextmanager
    def finishing_units(self) -> Iterator[None]:
        """Within: the first signal only sets `requested`. Elsewhere there is no unit to finish."""
        self._finishing = True
        try:
            yield
        finally:
            self._finishing = False

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Take a signal (a handler for `signal.signal`).

        Raises:
            Interrupted: no unit is in work, or this is the second signal.
        """
        del frame
        if self.requested or not self._finishing:
            for each in SIGNALS:  # a third one gets through even where this one does not
                signal.signal(each, signal.SIG_DFL)
            raise Interrupted(signum)
        self.requested, self.signal = True, signal.Signals(signum)
        # Not through a stream: the signal may have come in the middle of a write to it.
        os.write(2, b"\nstopping when the unit in work is done; once more to stop at once\n")


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """A `Stop` that SIGINT and SIGTERM set; handlers are as they were afterwards.

    Outside of the main thread Python has no signal handlers: there nothing sets it.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {each: signal.signal(each, stop.handle) for each in SIGNALS}
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
