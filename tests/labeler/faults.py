"""The labeler's command line with a fault in what is below it: `python -m tests.labeler.faults`.

    python -m tests.labeler.faults FAULT label corpus.jsonl --model ...

Faults that cannot be produced on demand (a full disk, a device out of memory, an engine that dies)
are raised where they would occur: the operating system's call, vLLM's step, vLLM's output. A run
can also wait at a given place, so that a test acts on it there however fast the machine is.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labeler import cli
from labeler.labeling.engines.vllm import tensor_capture as vllm_capture
from labeler.labeling.engines.vllm import vllm_engine
from labeler.labeling.engines.vllm import worker as vllm_worker
from labeler.labeling.engines.vllm.vllm_environment import prepare_environment
from labeler.labeling.runs import append, label_units, plan_input
from labeler.labeling.writing.set_place import SetPlace


def disk_full() -> None:
    """Nothing can be synced to disk once a first unit is journaled."""
    fsync = os.fsync

    def full(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink()
        if name.name.endswith("part-000001.parquet"):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    os.fsync = full


def killed_at(folder: str, name: str) -> Callable[[], None]:
    """The process is killed (SIGKILL) while it syncs a file whose name ends like this."""

    def install() -> None:
        fsync = os.fsync

        def kill(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if path.parent.name == folder and path.name.endswith(name):
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)

        os.fsync = kill

    return install


def in_step(number: int, error: Callable[[], Exception]) -> Callable[[], None]:
    """vLLM's step number `number` raises, once."""

    def install() -> None:
        load, steps = vllm_engine.load_llm, [0]

        def load_and_break(vllm: Any, arguments: dict[str, Any]) -> Any:
            llm = load(vllm, arguments)
            step = llm.llm_engine.step

            def broken() -> Any:
                steps[0] += 1
                if steps[0] == number:
                    raise error()
                return step()

            llm.llm_engine.step = broken
            return llm

        vllm_engine.load_llm = load_and_break

    return install


def out_of_memory() -> Exception:
    """As torch raises it."""
    import torch

    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 5.00 GiB")


def fewer_positions() -> None:
    """The last label of every third sequence is lost on the way from the engine."""
    joined, calls = vllm_capture.TensorRows.joined, [0]

    def short(self: vllm_capture.TensorRows) -> Any:
        calls[0] += 1
        cut = -1 if calls[0] % 3 == 0 else None  # not the two of the self-test
        return tuple(part[:cut] for part in joined(self))

    vllm_capture.TensorRows.joined = short  # type: ignore[method-assign]


def shifted_rows() -> None:
    """The workers' labels are off by one, as after a change of vLLM's internals."""
    gather = vllm_worker.gather_rows

    def shifted(*args: Any, **kwargs: Any) -> Any:
        ids, values = gather(*args, **kwargs)
        return ids, values.roll(1, 0)

    vllm_worker.gather_rows = shifted


def no_runner() -> None:
    """A different vLLM, whose runner has no method of that name."""

    def install(self: Any, *settings: Any) -> bool:
        del settings
        raise AttributeError(f"{type(self.model_runner).__name__} has no sampler")

    vllm_worker.LabelWorker.softshards_install = install  # type: ignore[method-assign]


def in_third_unit() -> None:
    """The run waits before it labels its third unit until the file $GATE exists."""
    real, units = label_units.unit_requests, [0]

    def wait(*args: Any, **kwargs: Any) -> Any:
        units[0] += 1
        if units[0] == 3:
            wait_for_gate()
        return real(*args, **kwargs)

    label_units.unit_requests = wait


def in_planning() -> None:
    """The run waits while it plans until the file $GATE exists."""
    real = plan_input.plan_units

    def wait(*args: Any, **kwargs: Any) -> Any:
        wait_for_gate()
        return real(*args, **kwargs)

    plan_input.plan_units = wait


def between_units() -> None:
    """The process stops itself (SIGSTOP) once it has journaled $UNITS units."""
    real, units = SetPlace.publish_unit, [0]

    def publish_and_stop(place: SetPlace, unit: int) -> None:
        real(place, unit)
        units[0] += 1
        if units[0] == int(os.environ["UNITS"]):
            os.kill(os.getpid(), signal.SIGSTOP)

    SetPlace.publish_unit = publish_and_stop  # type: ignore[method-assign]


def dies(when: str, name: str) -> Callable[[], None]:
    """The process ends with no chance to clean up, before or after a step of appending."""

    def install() -> None:
        real = getattr(append, name)

        def die(*args: Any, **kwargs: Any) -> None:
            if when == "after":
                real(*args, **kwargs)
            os._exit(9)

        setattr(append, name, die)

    return install


def wait_for_gate() -> None:
    while not Path(os.environ["GATE"]).exists():
        time.sleep(0.01)


FAULTS: dict[str, Callable[[], None]] = {
    "disk-full": disk_full,
    "killed-in-states": killed_at("hidden", "part-000001.parquet"),
    "killed-in-basis": killed_at("head", "basis_final.safetensors"),
    "killed-in-entry": killed_at("journal", "unit-000001.json"),
    "out-of-memory": in_step(30, out_of_memory),
    "engine-crash": in_step(30, lambda: RuntimeError("the engine core died unexpectedly")),
    "fewer-positions": fewer_positions,
    "shifted-rows": shifted_rows,
    "no-runner": no_runner,
    "wait-in-third-unit": in_third_unit,
    "wait-in-planning": in_planning,
    "stop-between-units": between_units,
    "dies-after-write_rejects": dies("after", "write_rejects"),
    "dies-before-write_manifest": dies("before", "write_manifest"),
    "dies-after-write_manifest": dies("after", "write_manifest"),
}

if __name__ == "__main__":
    prepare_environment()
    FAULTS[sys.argv.pop(1)]()
    sys.argv[0] = "labeler"
    cli.main()
