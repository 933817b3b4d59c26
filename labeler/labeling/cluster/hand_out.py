"""The driver of a run on Ray: hands out units to actors, and replaces those that die.

Ray places the actors and notices their deaths. The journal says what is done: a unit whose actor
died is handed out again unless it is journaled, and only once the dead actor's lock is free, so
that no two processes ever write the same shard. (An actor that Ray counts as lost may still run:
its node may only have lost the connection.)
"""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from labeler.console import err
from labeler.labeling.cluster.node_progress import NodeProgress
from labeler.labeling.cluster.place_actor import place_actor
from labeler.labeling.cluster.shared_folder import require_seen
from labeler.labeling.cluster.teacher_actor import Job, Ready
from labeler.labeling.engines.engine import EngineFailed
from labeler.labeling.planning.placement import (
    ActorNeeds,
    ClusterNode,
    count_actors,
    describe_shortage,
)
from labeler.labeling.runs.label_units import UnitCount
from labeler.labeling.runs.locks import wait_for_actor
from labeler.labeling.runs.stopping import Stop
from labeler.labeling.writing.set_place import SetPlace
from schemas import SoftshardsError, __version__
from schemas.errors import first_line
from schemas.journal import finished_unit

POLL_SECONDS = 0.5
LOOK_SECONDS = 5.0
"""Time between two looks at the nodes of the cluster."""
MOST_DEATHS = 3
"""Actors that one unit may cost."""
MOST_FAILED_STARTS = 5
"""Actors that may die one after the other before they are ready. Ray may take a while to notice
that a node is gone, and place more on it: each is a little later than the one before."""
FENCE_SECONDS = 600.0
"""Longest wait for a lost actor to let go of the set."""
PLACE_SECONDS = 120.0
"""Longest time without any teacher that Ray could place, beside --ray-wait."""
TELL_SECONDS = 30.0
"""Time without any, until a line says what is missing."""
CLOSE_SECONDS = 20.0


@dataclass(kw_only=True, eq=False)
class _Actor:
    """An actor and what it is doing.

    Attributes:
        call: the pending call, None while it has nothing to do.
        node: id of its node, once it is placed; ready: its teacher is loaded.
        unit: in its engine; writing: labeled, and perhaps not journaled yet.
    """

    name: str
    handle: Any
    group: Any
    call: Any
    what: Literal["place", "load", "label", "flush"] = "place"
    node: str | None = None
    ready: bool = False
    unit: int | None = None
    writing: int | None = None

    @property
    def units(self) -> list[int]:
        """The units that are lost if it dies now."""
        return [unit for unit in (self.writing, self.unit) if unit is not None]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A connected cluster and the actors to place on it.

    Attributes:
        ray: the module.
        nodes: returns the living nodes.
        needs: of one actor; actors: how many, None for as many as fit.
        patience: seconds to wait while there is no room for any.
    """

    ray: Any
    nodes: Callable[[], list[ClusterNode]]
    needs: ActorNeeds
    actors: int | None
    patience: float


class HandOut:
    """Labels units with the actors of a cluster; `run` does it once.

    Args:
        cluster: where.
        units: what, in the order to begin with.
        job: makes the job of an actor from its name.
        place: of the set.
        stop: the state of a request to stop.
        progress: shows what is done.
    """

    def __init__(
        self,
        cluster: Cluster,
        units: Sequence[int],
        job: Callable[[str], Job],
        place: SetPlace,
        stop: Stop,
        progress: NodeProgress,
    ) -> None:
        self._cluster, self._ray = cluster, cluster.ray
        self._job, self._place, self._stop = job, place, stop
        self._progress = progress
        self._queue, self._done = deque(units), dict[int, str]()
        self._actors: list[_Actor] = []
        self._fences: dict[Future[bool], tuple[str, list[int]]] = {}
        self._threads = ThreadPoolExecutor(thread_name_prefix="fence")
        self._nodes, self._looked = cluster.nodes(), time.monotonic()
        self._names = {node.id: node.name for node in self._nodes}
        self._deaths: Counter[int] = Counter()
        self._failed_starts = 0
        self._refused: dict[str, SoftshardsError] = {}
        self._not_before = 0.0
        self._error: BaseException | None = None
        self._alone_since, self._told = time.monotonic(), False

    def run(self) -> int:
        """Label the units, and return how many are journaled: fewer than all after a signal.

        Raises:
            SoftshardsError: no node can load a teacher, labels cannot be written or are not in the
                driver's set, a unit costs one actor after the other, or no actor can be placed.
                Journaled units are safe.
        """
        try:
            while not self._is_over():
                self._follow_nodes()
                self._place_actors()
                self._give_units()
                self._take_results()
                self._take_fences()
            if self._error is not None:
                raise self._error
            self._close()
            require_seen(self._place, self._done)
        finally:
            self._kill(self._actors)
            self._threads.shutdown(wait=False, cancel_futures=True)
        return len(self._done)

    @property
    def _is_stopping(self) -> bool:
        return self._stop.requested or self._error is not None

    def _is_over(self) -> bool:
        if any(actor.units for actor in self._actors):
            return False
        return self._is_stopping or not (self._queue or self._fences)

    def _follow_nodes(self) -> None:
        """Look at the nodes now and then; give up where no teacher could be placed for long."""
        now = time.monotonic()
        if now - self._looked > LOOK_SECONDS:
            self._looked, self._nodes = now, self._cluster.nodes()
            self._names |= {node.id: node.name for node in self._nodes}
        if any(actor.what != "place" for actor in self._actors) or self._is_stopping:
            self._alone_since, self._told = now, False
            return
        alone = now - self._alone_since
        if alone > TELL_SECONDS and not self._told:
            self._told = True
            err.print(f"waiting for Ray to place a teacher: {self._missing()}", style="yellow")
        if alone > PLACE_SECONDS + self._cluster.patience:
            for reason in self._refused.values():
                raise reason
            raise SoftshardsError(
                f"Ray could not place any teacher for {alone / 60:.0f} min: {self._missing()}",
                hint="`ray status` shows what is taken; --ray-wait MINUTES waits longer; finished "
                "units are safe, and the same command resumes",
            )

    def _missing(self) -> str:
        free = self._ray.available_resources()
        return describe_shortage(self._usable_nodes(), self._cluster.needs, free)

    def _usable_nodes(self) -> list[ClusterNode]:
        return [node for node in self._nodes if node.id not in self._refused]

    def _place_actors(self) -> None:
        """Have as many actors as were asked for, or as fit; never more than units are left."""
        if self._is_stopping or time.monotonic() < self._not_before:
            return
        wanted = self._cluster.actors
        if wanted is None:
            wanted = max(1, count_actors(self._usable_nodes(), self._cluster.needs))
        lost = sum(len(units) for _, units in self._fences.values())
        left = len(self._queue) + lost + sum(actor.unit is not None for actor in self._actors)
        wanted = min(wanted, left)
        extra = len(self._actors) - wanted
        if extra > 0:  # that were to be placed on nodes which are gone
            self._kill([actor for actor in self._actors if actor.what == "place"][:extra])
        while len(self._actors) < wanted:
            self._actors.append(self._new_actor())

    def _new_actor(self) -> _Actor:
        living = {node.id for node in self._nodes}
        handle, group = place_actor(self._ray, self._cluster.needs, self._refused.keys() & living)
        call = handle.join.remote()
        return _Actor(name=secrets.token_hex(6), handle=handle, group=group, call=call)

    def _give_units(self) -> None:
        for actor in self._actors:
            if actor.call is not None:
                continue
            if self._queue and not self._is_stopping:
                actor.what, actor.unit = "label", self._queue.popleft()
                actor.call = actor.handle.label.remote(actor.unit)
            elif actor.writing is not None:
                actor.what, actor.call = "flush", actor.handle.flush.remote()

    def _take_results(self) -> None:
        calls = {actor.call: actor for actor in self._actors if actor.call is not None}
        if not calls:
            time.sleep(POLL_SECONDS)  # a lost actor's lock is waited for
            return
        ready, _ = self._ray.wait(list(calls), timeout=POLL_SECONDS)
        errors = self._ray.exceptions
        for call in ready:
            actor = calls[call]
            try:
                result = self._ray.get(call)
            except errors.RayTaskError as error:
                self._failed(actor, error)
            except errors.RayError as error:
                is_broken = isinstance(error, errors.RayActorError) and error.actor_init_failed
                reason = _cannot_start(error) if is_broken else SoftshardsError(first_line(error))
                self._died(actor, reason)
            else:
                actor.call = None
                self._worked(actor, result)

    def _worked(self, actor: _Actor, result: object) -> None:
        if actor.what == "place":
            assert isinstance(result, tuple)
            self._joined(actor, *result)
        elif isinstance(result, Ready):
            assert actor.node is not None
            actor.ready, self._failed_starts = True, 0
            self._progress.joined(actor.node, self._names[actor.node])
            if result.capture.startswith("public interface: "):
                err.print(f"labels through vLLM's {result.capture}", style="yellow")
        else:
            self._count_done(actor.writing, actor.node)
            actor.writing = None
            if isinstance(result, UnitCount):
                assert actor.unit is not None
                assert actor.node is not None
                self._progress.labeled(actor.node, actor.unit, result)
                actor.writing, actor.unit = actor.unit, None

    def _joined(self, actor: _Actor, node: str, version: str) -> None:
        """Load the teacher of an actor that was placed."""
        actor.node, actor.what = node, "load"
        self._names.setdefault(node, node[:8])
        if version == __version__:
            actor.call = actor.handle.load.remote(self._job(actor.name))
            return
        reason = SoftshardsError(
            f"softshards {version} is installed there, and {__version__} here",
            hint="install the same version on all nodes",
        )
        self._refuse(actor, node, reason)

    def _failed(self, actor: _Actor, error: Any) -> None:
        """Handle an error that an actor raised."""
        cause = error.cause
        if isinstance(cause, EngineFailed):
            self._died(actor, cause)
        elif actor.what == "place":
            self._died(actor, _cannot_start(error))
        elif actor.what == "load" and actor.node and isinstance(cause, SoftshardsError):
            self._refuse(actor, actor.node, cause)
        else:
            self._error = self._error or (cause if isinstance(cause, SoftshardsError) else error)
            self._died(actor, None)

    def _refuse(self, actor: _Actor, node: str, reason: SoftshardsError) -> None:
        """Place no more teachers on a node that cannot load one; end if there is no other node."""
        self._refused[node] = reason
        self._died(actor, None)
        others = any(other.what != "place" for other in self._actors)
        room = count_actors(self._usable_nodes(), self._cluster.needs)
        if others or room or self._cluster.patience:
            err.print(f"left out: {self._names[node]}: {reason}", style="yellow")
        else:
            self._error = self._error or reason

    def _died(self, actor: _Actor, reason: SoftshardsError | None) -> None:
        """Give up an actor; its units are handed out again when its lock is free."""
        if actor.ready and actor.node is not None:
            self._progress.left(actor.node)
        elif reason is not None:
            self._failed_starts += 1
            self._not_before = time.monotonic() + LOOK_SECONDS * self._failed_starts
        if reason is not None:
            name = None if actor.node is None else self._names[actor.node]
            where = (
                name
                if name and actor.ready
                else f"before it was ready{f' on {name}' if name else ''}"
            )
            listed = ", ".join(str(unit + 1) for unit in actor.units)
            again = f"; to be labeled again unless journaled: unit {listed}" if listed else ""
            err.print(f"lost a teacher ({where}): {reason.what}{again}", style="yellow")
            if actor.unit is not None:
                self._deaths[actor.unit] += 1
            if max(self._deaths.values(), default=0) >= MOST_DEATHS:
                self._error = self._error or _too_often(actor.unit, reason)
            elif self._failed_starts >= MOST_FAILED_STARTS:
                self._error = self._error or _too_often(None, reason)
        units, actor.unit, actor.writing = actor.units, None, None
        self._kill([actor])
        if actor.what != "place":
            fence = self._threads.submit(wait_for_actor, self._place, actor.name, FENCE_SECONDS)
            self._fences[fence] = (actor.name, units)

    def _take_fences(self) -> None:
        for fence in [each for each in self._fences if each.done()]:
            name, units = self._fences.pop(fence)
            if not fence.result():
                raise SoftshardsError(
                    f"a lost teacher ({name}) may still write into this set",
                    path=self._place.name,
                    hint="stop its node, and run the same command again: it resumes",
                )
            if units:
                self._place.pull()
            for unit in reversed(units):
                if finished_unit(self._place.folder, unit, self._place.sizes) is not None:
                    self._count_done(unit, None)
                else:
                    self._progress.redo(unit)
                    self._queue.appendleft(unit)

    def _count_done(self, unit: int | None, node: str | None) -> None:
        if unit is not None:
            self._done[unit] = self._names.get(node or "", "unknown")

    def _close(self) -> None:
        """Let the actors free their teachers; end also those that are still loading one."""
        begun = [actor for actor in self._actors if actor.what != "place"]
        calls = [actor.handle.close.remote() for actor in begun if actor.ready]
        with contextlib.suppress(self._ray.exceptions.RayError):
            if calls:
                self._ray.wait(calls, num_returns=len(calls), timeout=CLOSE_SECONDS)
        self._kill(self._actors)
        for actor in begun:
            wait_for_actor(self._place, actor.name, CLOSE_SECONDS)

    def _kill(self, actors: list[_Actor]) -> None:
        for actor in list(actors):
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor.handle)
            if actor.group is not None:
                self._ray.util.remove_placement_group(actor.group)
            self._actors.remove(actor)


def _cannot_start(error: Exception) -> SoftshardsError:
    """Return the error for a node on which another version of this package is installed, or none.

    Args:
        error: Ray's, whose text ends with that of the process.
    """
    text = str(error).strip()
    place = re.search(r"ip=([^\s,)]+)", text)
    return SoftshardsError(
        f"softshards {__version__} cannot be started on the node at "
        f"{place[1] if place else 'an unknown address'}: {text.splitlines()[-1].strip()}",
        hint="install the same version on all nodes",
    )


def _too_often(unit: int | None, reason: SoftshardsError) -> SoftshardsError:
    if unit is None:
        what = f"{MOST_FAILED_STARTS} teachers died one after the other before they were ready"
    else:
        what = f"unit {unit + 1} was the last thing that {MOST_DEATHS} teachers did"
    return SoftshardsError(
        f"{what}: {reason.what}",
        path=reason.path,
        hint=reason.hint
        or "the actor's log is in the folder of Ray's session on its node; if memory ran out, "
        "lower --max-batched-tokens or --max-sequences",
    )
