"""Signals that end a run: the first waits for the unit in progress, the second does not."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal that ends the run now; a shell expects `exit_code` of a killed command."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class Stop:
    """The state of a request to stop.

    Attributes:
        requested: whether no further unit may begin.
        signal: the signal that made the request, or None.
    """

    def __init__(self) -> None:
        self.requested = False
        self.signal: signal.Signals | None = None
        self._finishing = False

    @contextlib.contextmanager
    def finishing_units(self) -> Iterator[None]:
        """Within the context, the first signal only sets `requested`; elsewhere it interrupts."""
        self._finishing = True
        try:
            yield
        finally:
            self._finishing = False

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal (for `signal.signal`).

        Raises:
            Interrupted: no unit is in progress, or this is the second signal.
        """
        del frame
        if self.requested or not self._finishing:
            for each in SIGNALS:  # a third one gets through even where this one does not
                signal.signal(each, signal.SIG_DFL)
            raise Interrupted(signum)
        self.requested, self.signal = True, signal.Signals(signum)
        # Not through a stream: the signal may have come in the middle of a write to it.
        os.write(2, b"\nstopping after this unit; press Ctrl-C again to stop now\n")


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Yield a `Stop` that SIGINT and SIGTERM set; restore the handlers afterwards.

    Outside the main thread Python has no signal handlers, so nothing sets it there.
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
