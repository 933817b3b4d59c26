"""`labeler label --ray`: the plan is made here, and labeled by actors on the nodes of a cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labeler.console import err
from labeler.labeling.cluster.hand_out import Cluster, HandOut
from labeler.labeling.cluster.node_progress import NodeProgress
from labeler.labeling.cluster.shared_folder import shared_token
from labeler.labeling.cluster.teacher_actor import Job
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.planning.placement import (
    ClusterNode,
    Placement,
    actor_needs,
    require_actors,
)
from labeler.labeling.runs.label_command import LabelCommand, run_label
from labeler.labeling.runs.label_dry_run import print_plan
from labeler.labeling.runs.label_units import count_rows
from labeler.labeling.runs.locks import remove_abandoned_files
from labeler.labeling.runs.stopping import Stop
from labeler.labeling.teacher.teacher import Teacher
from labeler.labeling.writing.set_place import SetPlace
from schemas import Manifest, SoftshardsError
from schemas.atomic import TMP_PREFIX
from schemas.plan import open_plan
from schemas.ray_cluster import prepare_ray, ray_cluster, require_ray

EXTRA = "ray"


def run_label_on_ray(command: LabelCommand) -> int:
    """Label the inputs on a cluster, or print the plan and its placement; return the exit code.

    Raises:
        SoftshardsError: there is no cluster or no room in it, or as `label_run.label`.
    """
    address, settings = command.cluster.ray, command.cluster
    assert address is not None
    _require_fitting(command)
    require_ray(EXTRA)
    prepare_ray(address)
    with ray_cluster(address) as ray:
        nodes = functools.partial(_living_nodes, ray)
        needs = actor_needs(nodes(), command.settings, settings)
        actors = require_actors(nodes(), needs, settings)
        if command.dry_run:
            print_plan(
                command.inputs,
                command.settings,
                calibrate=False,
                as_json=command.as_json,
                placement=Placement(nodes=nodes(), needs=needs, actors=actors),
            )
            return 0
        cluster = Cluster(
            ray=ray, nodes=nodes, needs=needs, actors=actors, patience=60 * settings.ray_wait
        )
        work = functools.partial(_label_units, cluster, command.settings)
        return run_label(command, work)


def _require_fitting(command: LabelCommand) -> None:
    """Refuse settings that are for one process.

    Raises:
        SoftshardsError: one was given.
    """
    config = command.settings
    if config.world_size > 1:
        raise SoftshardsError(
            "--ray hands out the units itself", hint="leave out --rank and --world-size"
        )
    if config.engine == "served":
        raise SoftshardsError(
            "--ray places teachers on nodes, and a served teacher has its place already",
            hint="leave out --ray, and raise --concurrency",
        )
    if command.calibrate:
        raise SoftshardsError(
            "--calibrate measures this machine", hint="leave out --ray, or --calibrate"
        )


def _living_nodes(ray: Any) -> list[ClusterNode]:
    nodes: Sequence[dict[str, Any]] = ray.nodes()
    return [
        ClusterNode(
            id=node["NodeID"],
            # Several nodes may have one name: on one machine, all of them.
            name=f"{node['NodeManagerHostname']}/{node['NodeID'][:6]}",
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
        )
        for node in nodes
        if node["Alive"]
    ]


def _label_units(
    cluster: Cluster,
    asked: LabelConfig,
    todo: list[int],
    config: LabelConfig,
    teacher: Teacher,
    manifest: Manifest,
    place: SetPlace,
    stop: Stop,
) -> int:
    """Label units on a cluster; see `label_units.label_units`.

    Args:
        cluster: where.
        asked: the settings as they were given: a teacher from the Hub is looked for by its name on
            each node, in the cache of that node.
        todo, config, teacher, manifest, place, stop: as for one process.
    """
    is_named = teacher.source is not None and teacher.source.name is not None
    model = asked.model if is_named else config.model.absolute()
    out = config.out if place.remote is not None else Path(config.out).absolute()
    # The template has done its work, the plan: it need not be on the nodes.
    sent = dataclasses.replace(
        config, model=model, revision=asked.revision, out=out, chat_template=None
    )
    rows = count_rows(open_plan(place.folder, manifest.plan), todo, config)
    err.print(f"placing teachers, each with {cluster.needs}: {teacher.path} in {config.engine}")
    with (
        contextlib.redirect_stdout(sys.stderr),  # where Ray prints that a worker died
        contextlib.ExitStack() as connection,
        shared_token(place, TMP_PREFIX) as token,
        NodeProgress(rows, manifest.planned_units) as progress,
    ):
        connection.callback(cluster.ray.shutdown)  # before the summary is printed

        def job(name: str) -> Job:
            return Job(
                config=sent,
                manifest=manifest,
                name=name,
                token=token,
                cpus=cluster.needs.cpus,
                spans=cluster.needs.spans,
            )

        done = HandOut(cluster, todo, job, place, stop, progress).run()
        for line in progress.lines():
            err.print(line)
    remove_abandoned_files(place, config.rank, config.world_size)  # of actors that were killed
    return done
