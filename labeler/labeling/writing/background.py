"""A thread that writes while the engine works, at most one unit at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType


class BackgroundWriter:
    """Runs jobs one after the other in its own thread.

    `submit` waits for the previous job, so at most one unit is written while the next is labeled.
    That bounds memory, and an error ends the run at most one unit later. Leaving the context waits
    for the last job.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._job: Future[None] | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Start a job when the previous one is done.

        Raises:
            Exception: the exception of the previous job.
        """
        self.wait()
        self._job = self._thread.submit(job)

    def wait(self) -> None:
        """Wait for the running job, if any, and raise its exception."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            # A unit that was labeled is worth its shard even where the engine failed after it.
            self.wait()
        except BaseException as late:
            if error is None:
                raise
            error.add_note(f"the previous unit could not be written: {late}")
        finally:
            self._thread.shutdown(wait=True)
