"""The time that a chat template prints: pinned once per label set, so that rows stay the same."""

from __future__ import annotations

from datetime import datetime


class TemplateClock:
    """A template's `strftime_now` at a fixed moment, which remembers that it was called."""

    def __init__(self, moment: str) -> None:
        """Pin the moment.

        Args:
            moment: in ISO format, in local time: 2026-01-31T12:00:00.
        """
        self.moment = moment
        self.used = False

    def strftime_now(self, pattern: str) -> str:
        """Return the moment in a template's own pattern."""
        self.used = True
        return datetime.fromisoformat(self.moment).strftime(pattern)


def new_clock() -> TemplateClock:
    """Return a clock pinned to this second."""
    return TemplateClock(datetime.now().isoformat(timespec="seconds"))
