"""Where teachers fit into a cluster, and the flags of `--ray`."""

from __future__ import annotations

import re
import shlex
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from labeler.cli import app
from labeler.labeling.cluster.shared_folder import require_seen, require_shared
from labeler.labeling.cluster.teacher_actor import require_model
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.label_settings import RaySettings
from labeler.labeling.planning.placement import (
    ActorNeeds,
    ClusterNode,
    actor_needs,
    actors_by_node,
    count_actors,
    describe_shortage,
    require_actors,
)
from labeler.labeling.writing.set_place import SetPlace
from schemas import SoftshardsError
from schemas.flags_file import name_cluster
from schemas.ray_cluster import ray_cluster
from tests.labeler.command_line import CommandLine
from tests.labeler.conftest import Settings

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "docs/cluster").iterdir())
PARALLEL = {"tensor-parallel-size": 8, "pipeline-parallel-size": 2}


def node(name: str, cpus: float, gpus: float = 0.0) -> ClusterNode:
    return ClusterNode(id=name, name=name, cpus=cpus, gpus=gpus)


HEAD, SMALL, LARGE = node("head", 0), node("small", 4), node("large", 9)
MODEL = LabelConfig(model=Path("m"), out=Path("o"))
ONE, EIGHT = node("one", 8, 1), node("eight", 96, 8)


@pytest.mark.parametrize(
    ("nodes", "changes", "flags", "needs", "fit"),
    [
        ([HEAD, SMALL, LARGE], {}, {}, ActorNeeds(cpus=4, gpus=0), 3),
        ([HEAD, SMALL], {}, {"ray_cpus": 1}, ActorNeeds(cpus=1, gpus=0), 4),
        ([HEAD, ONE, EIGHT], {"engine": "vllm"}, {}, ActorNeeds(cpus=8, gpus=1), 9),
        ([ONE, EIGHT], {"engine": "vllm"}, {"ray_gpus": 0.5}, ActorNeeds(cpus=4, gpus=0.5), 18),
        ([ONE, EIGHT], {"engine": "vllm"}, {"ray_gpus": 0}, ActorNeeds(cpus=8, gpus=0), 13),
        (
            [ONE, EIGHT],
            {"engine": "vllm", "engine_arg": {"tensor-parallel-size": 2}},
            {"ray_cpus": 16},
            ActorNeeds(cpus=16, gpus=2),
            4,
        ),
        (
            [EIGHT, EIGHT, ONE],
            {"engine": "vllm", "engine_arg": PARALLEL},
            {},
            ActorNeeds(cpus=128, gpus=16, spans=True),
            1,
        ),
    ],
    ids=["cores", "one core", "a GPU", "half a GPU", "no GPU", "two GPUs", "two nodes"],
)
def test_a_teacher_takes_its_share(
    nodes: list[ClusterNode],
    changes: dict[str, Any],
    flags: dict[str, Any],
    needs: ActorNeeds,
    fit: int,
    settings: Settings,
) -> None:
    found = actor_needs(nodes, settings(**changes), RaySettings(ray="auto", **flags))
    assert found == needs
    assert count_actors(nodes, found) == fit


def test_more_teachers_than_fit_are_refused_unless_nodes_may_join() -> None:
    needs, nodes = ActorNeeds(cpus=4, gpus=0), [SMALL, LARGE]
    assert actors_by_node(nodes, needs) == {"small": 1, "large": 2}
    assert require_actors(nodes, needs, RaySettings(ray="auto")) is None
    assert require_actors(nodes, needs, RaySettings(ray="auto", ray_actors=3)) == 3
    assert require_actors(nodes, needs, RaySettings(ray="auto", ray_actors=9, ray_wait=1)) == 9
    told = r"9 teachers need 4 CPU cores each, and the cluster has room for 3 \(small: 4 CPU cores"
    with pytest.raises(SoftshardsError, match=told):
        require_actors(nodes, needs, RaySettings(ray="auto", ray_actors=9))
    told = "a teacher needs 4 CPU cores, and the cluster has room for 0"
    with pytest.raises(SoftshardsError, match=told):
        require_actors([HEAD], needs, RaySettings(ray="auto"))
    with pytest.raises(SoftshardsError, match="no node of the cluster offers a CPU core"):
        actor_needs([HEAD], MODEL, RaySettings(ray="auto", ray_wait=1))


def test_a_cluster_that_has_no_node_yet_is_asked_for_what_the_flags_say() -> None:
    for flags, needs in (
        ({"ray_gpus": 2}, ActorNeeds(cpus=1, gpus=2)),
        ({"ray_cpus": 8}, ActorNeeds(cpus=8, gpus=0)),
        ({"ray_cpus": 8, "ray_gpus": 1}, ActorNeeds(cpus=8, gpus=1)),
    ):
        assert actor_needs([HEAD], MODEL, RaySettings(ray="auto", ray_wait=15, **flags)) == needs


@pytest.mark.parametrize(
    ("needs", "free", "told"),
    [
        (
            ActorNeeds(cpus=4, gpus=0),
            {"CPU": 3.0, "memory": 1e9},
            "each needs 4 CPU cores on one node; free: 3 of 105 CPU cores on 3 nodes",
        ),
        (
            ActorNeeds(cpus=1, gpus=0.5),
            {"CPU": 1.0},
            "each needs 0.5 GPUs and 1 CPU core on one node; free: 0 of 9 GPUs and 1 of 105 CPU "
            "cores on 3 nodes",
        ),
    ],
)
def test_what_is_missing_is_said(needs: ActorNeeds, free: dict[str, float], told: str) -> None:
    assert describe_shortage([HEAD, ONE, node("b", 97, 8)], needs, free) == told


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"ray_actors": 2}, "--ray-actors needs --ray"),
        ({"ray": "auto", "ray_actors": 0}, "--ray-actors is 0; it must be more"),
        ({"ray": "auto", "ray_wait": -1}, "--ray-wait is -1; it must be more"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags: dict[str, Any], told: str) -> None:
    with pytest.raises(SoftshardsError, match=told):
        RaySettings(**flags)


def test_the_address_may_be_left_out() -> None:
    assert name_cluster(["label", "--ray", "--k", "8"]) == ["label", "--ray", "auto", "--k", "8"]
    assert name_cluster(["label", "--ray"]) == ["label", "--ray", "auto"]
    assert name_cluster(["--ray", "h:1", "c"]) == ["--ray", "h:1", "c"]


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("127.0.0.1:1", "no Ray cluster at 127.0.0.1:1: .*refused"),
        ("corpus.jsonl", "--ray corpus.jsonl is no address"),
        ("", "--ray without a value is no address"),
        ("ray://head:10001", "is an address of Ray's client"),
    ],
)
def test_an_address_without_a_cluster_is_refused_at_once(address: str, told: str) -> None:
    with pytest.raises(SoftshardsError, match=told), ray_cluster(address):
        pass


def test_a_server_that_is_not_ray_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        told = "no Ray cluster at 127.0.0.1:.*: something else listens there"
        with (
            pytest.raises(SoftshardsError, match=told),
            ray_cluster(f"127.0.0.1:{server.getsockname()[1]}"),
        ):
            pass
        thread.join()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--world-size", 2], "--ray hands out the units itself"),
        (["--engine", "served", "--server-url", "http://h"], "a served teacher has its place"),
        (["--dry-run", "--calibrate"], "--calibrate measures this machine"),
    ],
)
def test_settings_for_one_process_are_refused(
    flags: list[object], told: str, labeler: CommandLine
) -> None:
    done = labeler("label", "c.jsonl", "--model", "m", "--out", "o", "--ray", "h:1", *flags)
    assert (done.code, told in done.err) == (2, True)


def test_a_node_that_does_not_share_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "token").touch()
    require_shared(tmp_path, "token", "node-a")
    told = "node node-a does not see the files that the driver writes"
    with pytest.raises(SoftshardsError, match=told):
        require_shared(tmp_path / "elsewhere", "token", "node-a")


def test_units_that_the_driver_does_not_see_are_named_with_their_node(tmp_path: Path) -> None:
    require_seen(SetPlace(tmp_path), {}, 0)
    told = "node b, c journaled units that are not here: 3, 4"
    with pytest.raises(SoftshardsError, match=told):
        require_seen(SetPlace(tmp_path), {2: "c", 3: "b"}, 0)


def test_a_node_without_the_teacher_is_named(settings: Settings) -> None:
    require_model(settings(), "node-a")
    require_model(settings(model=Path("owner/name")), "node-a")  # it is downloaded there
    with pytest.raises(SoftshardsError, match="node node-a has no teacher in this folder"):
        require_model(settings(model=Path("/nowhere/teacher")), "node-a")


@pytest.mark.parametrize("example", EXAMPLES, ids=[path.name for path in EXAMPLES])
def test_the_commands_of_the_examples_parse(example: Path) -> None:
    # A command goes on after a backslash, and in the folded text of YAML; comments show some, too.
    text = re.sub(r"\\\n#?", " ", example.read_text())
    text = re.sub(r"\n +(?=--)", " ", text)
    text = re.sub(r'"(\$[^"]*)"', r"\1", text)
    shown = re.findall(r"labeler label ([^\"\n]*?)(?:\"|&|\n)", text)
    assert shown
    for line in shown:
        if line.startswith("..."):
            continue
        words = ["0" if word.startswith("$JOB") else word for word in shlex.split(line)]
        words = [word for word in words if word != "$@"]
        _, bound, unused = app.parse_args(["label", *words], exit_on_error=False, print_error=False)
        assert not unused
        command = bound.arguments["config"]
        assert command.cluster.ray or command.settings.world_size > 1
