"""Progress of a run by node: a bar for the rows with an ETA, and a line per node."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType

from rich.progress import TaskID

from labeler.console import err, human_seconds, progress
from labeler.labeling.runs.label_units import UnitCount


@dataclass(kw_only=True)
class _Node:
    """A node with its line, its living actors, and what they have labeled."""

    name: str
    task: TaskID
    actors: int = 0
    units: int = 0
    labels: int = 0
    since: float = 0.0


class NodeProgress:
    """Shows what each node has done; where there is no terminal, a line per unit.

    Args:
        rows: of all units to label.
        units: of the whole plan, for the lines.
    """

    def __init__(self, rows: int, units: int) -> None:
        self._bar = progress("rows", note=True)
        self._rows, self._done, self._units = rows, 0, units
        self._all = self._bar.add_task("labeling", total=rows, note="| waiting for teachers")
        self._nodes: dict[str, _Node] = {}
        self._unit_rows: dict[int, int] = {}
        self._started: float | None = None

    def joined(self, node_id: str, name: str) -> None:
        """Count an actor that is ready."""
        now = time.perf_counter()
        if self._started is None:
            self._started = now
        if node_id not in self._nodes:
            task = self._bar.add_task(f"  {name}", total=None, note="")
            self._nodes[node_id] = _Node(name=name, task=task, since=now)
        self._nodes[node_id].actors += 1
        self._show(self._nodes[node_id])

    def left(self, node_id: str) -> None:
        """Count an actor that died."""
        self._nodes[node_id].actors -= 1
        self._show(self._nodes[node_id])

    def labeled(self, node_id: str, unit: int, count: UnitCount) -> None:
        """Count a unit."""
        node = self._nodes[node_id]
        node.units += 1
        node.labels += count.labels
        self._done += count.rows
        self._unit_rows[unit] = count.rows
        self._bar.advance(self._all, count.rows)
        self._bar.advance(node.task, count.rows)
        self._show(node)
        if not err.is_terminal:
            err.print(
                f"unit {unit + 1} of {self._units} on {node.name}: {count.rows} rows, "
                f"{count.labels} labels in {human_seconds(count.seconds)}; {self._done} of "
                f"{self._rows} rows, ETA {self._eta()}"
            )

    def redo(self, unit: int) -> None:
        """Take back the rows of a unit that must be labeled again, if it was labeled."""
        rows = self._unit_rows.pop(unit, 0)
        self._done -= rows
        self._bar.advance(self._all, -rows)

    def lines(self) -> list[str]:
        """Return what each node has done."""
        return [f"{node.name}: {node.units} units, {_speed(node)}" for node in self._nodes.values()]

    def _show(self, node: _Node) -> None:
        actors = sum(each.actors for each in self._nodes.values())
        places = sum(each.actors > 0 for each in self._nodes.values())
        self._bar.update(node.task, note=_note(node))
        self._bar.update(self._all, note=f"| {actors} teachers on {places} nodes")

    def _eta(self) -> str:
        if not self._done or self._started is None:
            return "unknown"
        seconds = time.perf_counter() - self._started
        return human_seconds(seconds / self._done * (self._rows - self._done))

    def __enter__(self) -> NodeProgress:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, None)


def _note(node: _Node) -> str:
    return f"| {node.actors} teachers, {node.units} units, {_speed(node)}"


def _speed(node: _Node) -> str:
    return f"{node.labels / max(1e-9, time.perf_counter() - node.since):,.0f} labels/s"
