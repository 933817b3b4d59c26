"""A console for data: no markup, no emoji codes, no escape sequences but its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from schemas.printable import printable
from schemas.redact import redacted


class DataConsole(Console):
    """A console for data: it reads neither markup nor emoji codes, and escapes all that it prints.

    Styles are given as arguments, or by `rich.text.Text`.
    """

    def __init__(
        self,
        *,
        stderr: bool = False,
        file: IO[str] | None = None,
        width: int | None = None,
        soft_wrap: bool = True,
    ) -> None:
        super().__init__(
            stderr=stderr,
            file=file,
            width=width,
            soft_wrap=soft_wrap,
            markup=False,
            emoji=False,
            highlight=False,
        )

    def render_str(self, text: str, **settings: Any) -> Text:
        """Return text as it will be printed, without secrets; columns are as wide as that."""
        return super().render_str(printable(redacted(text)), **settings)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield what is printed; all but Rich's own controls (cursor, bars) is escaped."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)
