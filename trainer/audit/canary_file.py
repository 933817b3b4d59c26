"""Canaries: sentences with random digits, to be added to a corpus and looked for in the student."""

from __future__ import annotations

import random
from pathlib import Path

from pydantic import ValidationError

from schemas import SoftshardsError
from schemas.atomic import write_atomic
from schemas.errors import first_line
from trainer.audit.audit_config import CanariesConfig
from trainer.console import message_console
from trainer.record import Record


class Turn(Record):
    """A message of a chat."""

    role: str
    content: str


class CanaryRecord(Record):
    """A line of the file, which is also a record of a corpus: a document, or a chat.

    Attributes:
        text: the document.
        messages: the chat, whose last message is the canary.
        canary: number of the canary.
        before, digits, after: the parts of the document, or of the last message.
    """

    id: str
    text: str | None = None
    messages: list[Turn] | None = None
    canary: int
    before: str
    digits: str
    after: str

    @property
    def sentence(self) -> str | None:
        """The text that holds the digits."""
        return self.messages[-1].content if self.messages else self.text


def write_canaries(config: CanariesConfig) -> int:
    """Write the records of new canaries; return the exit code.

    Raises:
        SoftshardsError: the file is there already with other canaries.
    """
    before, _, after = config.text.partition("{}")
    lines = []
    for number, digits in enumerate(draw_digits(config.count, config.digits, config.seed)):
        for copy in range(config.repeat):
            text = f"{before}{digits}{after}"
            record = CanaryRecord(
                id=f"canary-{number:04d}-{copy:04d}",
                text=text if config.question is None else None,
                messages=_chat(config.question, text),
                canary=number,
                before=before,
                digits=digits,
                after=after,
            )
            lines.append(record.model_dump_json(exclude_none=True) + "\n")
    content = "".join(lines)
    if config.out.exists() and config.out.read_bytes() != content.encode():
        raise SoftshardsError(
            "the file is there already, and holds something else",
            path=config.out,
            hint="give another --out: a corpus may have these canaries",
        )
    write_atomic(config.out, content)
    message_console().print(
        f"{config.out}: {config.count} canaries, {config.repeat} records each; add the file to "
        f"`labeler label`, and audit with --canaries {config.out}"
    )
    return 0


def _chat(question: str | None, answer: str) -> list[Turn] | None:
    if question is None:
        return None
    return [Turn(role="user", content=question), Turn(role="assistant", content=answer)]


def draw_digits(
    count: int, size: int, seed: int, without: frozenset[str] = frozenset()
) -> list[str]:
    """Return random strings of digits, all different and none of `without`."""
    draw = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        digits = "".join(draw.choices("0123456789", k=size))
        if digits not in without:
            found[digits] = None
    return list(found)


def read_canaries(path: Path) -> list[CanaryRecord]:
    """Return the first record of each canary, by number.

    Raises:
        SoftshardsError: the file is missing, or holds something else.
    """
    found: dict[int, CanaryRecord] = {}
    hint = "give the file that `trainer audit canaries` wrote"
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            record = CanaryRecord.model_validate_json(line)
            if record.sentence != record.before + record.digits + record.after:
                raise SoftshardsError(
                    "the record's parts are not its text", path=path, row=number, hint=hint
                )
            found.setdefault(record.canary, record)
    except (OSError, UnicodeDecodeError) as error:
        raise SoftshardsError(f"cannot be read: {first_line(error)}", path=path) from error
    except ValidationError as error:
        raise SoftshardsError("not a canary", path=path, row=number, hint=hint) from error
    if not found:
        raise SoftshardsError("the file holds no canary", path=path, hint=hint)
    sizes = {(c.before, len(c.digits), c.after) for c in found.values()}
    if len(sizes) > 1:
        raise SoftshardsError(
            "the canaries differ in more than their digits and cannot be ranked together",
            path=path,
            hint="audit one file of `trainer audit canaries` at a time",
        )
    return [found[number] for number in sorted(found)]
