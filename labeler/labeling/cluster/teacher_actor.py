"""An actor of a run: a teacher on some node, which labels, writes and journals units."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labeler.labeling.cluster.shared_folder import require_shared
from labeler.labeling.label_config import LabelConfig
from schemas import Manifest, SoftshardsError, __version__

if TYPE_CHECKING:
    from labeler.labeling.runs.label_units import UnitCount, UnitLabeler


@dataclass(frozen=True, kw_only=True)
class Job:
    """What an actor needs to know; paths are absolute.

    Attributes:
        config: the settings of the run; manifest: of the set.
        name: of the actor, which names its lock.
        token: name of a file that the driver wrote into the set's folder; None in a store.
        cpus: cores of the actor; spans: its GPUs are on several nodes.
    """

    config: LabelConfig
    manifest: Manifest
    name: str
    token: str | None
    cpus: float
    spans: bool


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A teacher that is loaded, and how its labels leave the engine."""

    capture: str


class TeacherActor:
    """A teacher that labels the units it is given, one call after the other.

    `label` returns when the engine is done with a unit; a thread writes it while the next one is
    labeled. So a unit is known to be journaled when the call after it returns, or `flush`.
    """

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()
        self._labeler: UnitLabeler | None = None

    def join(self) -> tuple[str, str]:
        """Return the id of this node and the version of this package here.

        It takes and returns plain values, so that any version understands it.
        """
        return _node_id(), __version__

    def load(self, job: Job) -> Ready:
        """Check that this node sees the set and the teacher, and load the teacher.

        Raises:
            SoftshardsError: it does not, or the teacher cannot be loaded.
        """
        node = _node_name()
        # Ray's own value is what the driver's machine was started with, for a Ray of our own.
        os.environ["OMP_NUM_THREADS"] = str(max(1, int(job.cpus)))
        from labeler.labeling.engines.vllm.vllm_environment import prepare_environment

        prepare_environment()
        from labeler.labeling.runs.identify_teacher import identify_teacher
        from labeler.labeling.runs.label_units import UnitLabeler
        from labeler.labeling.runs.locks import actor_lock
        from labeler.labeling.runs.plan_settings import require_same_teacher
        from labeler.labeling.teacher.locate_teacher import locate_teacher
        from labeler.labeling.writing.set_place import open_place

        config, manifest = job.config, job.manifest
        if job.token is not None:
            require_shared(Path(config.out), job.token, node)
        place = self._open.enter_context(open_place(config.out, writer=job.name))
        self._open.enter_context(actor_lock(place, job.name))
        place.pull()
        require_model(config, node)
        config, source = locate_teacher(config, weights=True)
        teacher, identity = identify_teacher(
            config, weights_digest=config.weights_digest, source=source
        )
        # These two decide what is planned, and the plan is made.
        fixed = manifest.identity
        planned = {"chat_template": fixed.chat_template, "template_time": fixed.template_time}
        require_same_teacher(identity.model_copy(update=planned), manifest, place.folder)
        if job.spans and "distributed-executor-backend" not in config.engine_arg:
            spread = config.engine_arg | {"distributed-executor-backend": "ray"}
            config = dataclasses.replace(config, engine_arg=spread)
        labeler = UnitLabeler(config, teacher, manifest, place)
        self._labeler = self._open.enter_context(labeler)
        return Ready(capture=str(labeler.facts.settings.get("capture", "")))

    def label(self, unit: int) -> UnitCount:
        """Label a unit; the one before it is journaled when this returns.

        Raises:
            SoftshardsError: as `label_units`.
        """
        assert self._labeler is not None, "load comes first"
        return self._labeler.label(unit, _ignore)

    def flush(self) -> None:
        """Wait until the last unit is journaled.

        Raises:
            SoftshardsError: it could not be written.
        """
        assert self._labeler is not None, "load comes first"
        self._labeler.flush()

    def close(self) -> None:
        """Free the teacher and the actor's lock."""
        self._open.close()


def require_model(config: LabelConfig, node: str) -> None:
    """Check that the teacher's folder is on this node.

    Raises:
        SoftshardsError: it is missing.
    """
    if config.model.is_absolute() and not (config.model / "config.json").is_file():
        raise SoftshardsError(
            f"node {node} has no teacher in this folder",
            path=config.model,
            hint="use a folder that all nodes share, copy the teacher to the same path on each, or "
            "name it OWNER/NAME, as on the Hub",
        )


def _node_id() -> str:
    import ray

    node: str = ray.get_runtime_context().get_node_id()
    return node


def _node_name() -> str:
    import socket

    import ray

    address: Any = ray.util.get_node_ip_address()
    return f"{socket.gethostname()} ({address})"


def _ignore(note: str) -> None:
    del note
