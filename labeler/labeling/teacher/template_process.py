"""Chat templates of strangers, rendered under limits of time, memory and size.

A template is a program: sandboxed by jinja, but free to loop for ever or to multiply a text. It is
therefore rendered in a process that can be killed, whether it came with a label set or a teacher.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import resource
import select
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import psutil

from schemas import SoftshardsError
from schemas.errors import first_line

SECONDS = 5.0
"""Time per rendering; templates need milliseconds."""
TOTAL_SECONDS = 60.0
"""Time of all renderings of a renderer, beside what it is given for each."""
SECONDS_EACH = 0.05
"""What is added for each rendering while a corpus is rendered, whose length is the user's."""
MEMORY = 1 << 30
"""Bytes that the process may take."""
MOST_TEXT = 1 << 22
"""Characters of a rendered chat."""
MOST_CHAT = 1 << 26
"""Bytes of a chat before it is rendered: more would reach the limit of memory."""
SIZE_BYTES = 8


class TemplateLimit(SoftshardsError):
    """A chat template exceeds a limit."""


class ChatTooLong(TemplateLimit):
    """A chat is larger than MOST_CHAT, or its text than MOST_TEXT; others may not be."""


@contextmanager
def limited_templates(*, each: float = 0.0) -> Iterator[LimitedTemplates]:
    """Yield a renderer in a process of its own, while the context lasts.

    Args:
        each: seconds that each rendering adds to TOTAL_SECONDS.
    """
    renderer = LimitedTemplates(each=each)
    try:
        yield renderer
    finally:
        renderer.close()


class LimitedTemplates:
    """Renders as transformers' `render_jinja_template`, in a process that is forked at first use.

    A fork takes milliseconds, where importing transformers again takes more than a second. The
    child runs Python alone, no threads and none of the libraries that have some.

    A template that reached a limit of time or memory is not tried again, with whatever chat: a set
    has many rows.

    Attributes:
        reached: the sentence about the limit that each such template reached.
    """

    def __init__(self, *, each: float = 0.0) -> None:
        self.reached: dict[str, str] = {}
        self._each = each
        self._child: int | None = None
        self._requests = self._answers = -1
        self._left = TOTAL_SECONDS

    def __call__(self, *conversations: Any, chat_template: str, **settings: Any) -> Any:
        """Return what `render_jinja_template` returns.

        Raises:
            TemplateLimit: the template takes too much time or memory, now or in an earlier call.
            ChatTooLong: its text or the chat itself is too long.
            ValueError: the template raises an error, whose first line is the message.
        """
        if chat_template in self.reached:
            raise TemplateLimit(self.reached[chat_template])
        try:
            return self._ask(*conversations, chat_template=chat_template, **settings)
        except ChatTooLong:
            raise
        except TemplateLimit as limit:
            self.reached[chat_template] = limit.what
            raise

    def _ask(self, *conversations: Any, **settings: Any) -> Any:
        if self._child is None:
            self._fork()
        request = pickle.dumps((conversations, settings))
        if len(request) > MOST_CHAT:
            raise ChatTooLong(f"the chat has more than {MOST_CHAT >> 20} MB")
        self._left += self._each
        begun = time.monotonic()
        try:
            os.write(self._requests, len(request).to_bytes(SIZE_BYTES, "big"))
            _write(self._requests, request)
            answer = self._read(begun + min(SECONDS, self._left))
        except TimeoutError as error:
            self.close()
            limit = f"{SECONDS:g} s for a chat"
            if self._left < SECONDS:
                each = f" and {self._each:g} s per rendering" if self._each else ""
                limit = f"{TOTAL_SECONDS:g} s in all{each}"
            raise TemplateLimit(f"the chat template takes more than {limit}") from error
        except BrokenPipeError as error:
            self.close()
            raise TemplateLimit("the chat template ends the process that renders it") from error
        self._left -= time.monotonic() - begun
        kind, value = answer
        if kind == "memory":
            raise TemplateLimit(value)
        if kind == "long":
            raise ChatTooLong(value)
        if kind == "error":
            raise ValueError(value)
        # What the child's copies of messages and clock noted.
        for message, asked in zip(conversations[0][0], value["asked"]):
            if asked:
                message.asked.update(asked)
        if value["clock"]:
            settings["strftime_now"].__self__.used = True
        return value["texts"], value["blocks"]

    def _read(self, deadline: float) -> tuple[str, Any]:
        data = bytearray()
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        while not data.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise TimeoutError
            block = os.read(self._answers, 1 << 16)
            if not block:
                raise BrokenPipeError
            data += block
        kind, value = json.loads(data)
        return kind, value

    def _fork(self) -> None:
        # What rendering needs is imported before, not in the child.
        from transformers.utils.chat_template_utils import render_jinja_template

        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which it does not use
            child = os.fork()
        if child == 0:
            _serve(render_jinja_template, requests, answers, (self._requests, self._answers))
        os.close(requests)
        os.close(answers)
        self._child = child

    def close(self) -> None:
        """Kill the process, if it runs; the next rendering starts another one."""
        if self._child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)
        os.close(self._requests)
        os.close(self._answers)
        self._child = None


def _serve(render: Any, requests: int, answers: int, others: tuple[int, int]) -> NoReturn:
    """Answer requests in the child until the parent closes its pipe."""
    try:
        for file in others:
            os.close(file)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with contextlib.suppress(ValueError, OSError):
            most = psutil.Process().memory_info().vms + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        while size := os.read(requests, SIZE_BYTES):
            conversations, settings = pickle.loads(_read_all(requests, size))
            answer = json.dumps(_render(render, conversations, settings))
            _write(answers, answer.encode() + b"\n")
    finally:
        os._exit(0)


def _render(render: Any, conversations: Any, settings: Any) -> tuple[str, Any]:
    try:
        texts, blocks = render(*conversations, **settings)
        if max(map(len, texts)) > MOST_TEXT:
            return "long", f"the chat template writes more than {MOST_TEXT >> 20} MB for a chat"
    except MemoryError:
        return "memory", f"the chat template takes more than {MEMORY >> 30} GB of memory"
    except BaseException as error:  # templates raise any type
        return "error", first_line(error)[:1000]
    clock = getattr(settings.get("strftime_now"), "__self__", None)
    return "text", {
        "texts": texts,
        "blocks": blocks,
        "asked": [list(getattr(message, "asked", ())) for message in conversations[0][0]],
        "clock": clock is not None and clock.used,
    }


def _read_all(file: int, size: bytes) -> bytearray:
    length, data = int.from_bytes(size, "big"), bytearray()
    while len(data) < length and (block := os.read(file, length - len(data))):
        data += block
    return data


def _write(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]
