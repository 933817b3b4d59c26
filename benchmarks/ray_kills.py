"""`labeler label --ray` while actors, nodes and drivers are killed, against a local run.

    python -m benchmarks.ray_kills [--trials 12] [--seed 0] [--corpus FILE]

A Ray cluster of three nodes is started on this machine: a head, and two nodes with one core each. A
local run labels the corpus first. Then each trial labels it on the cluster, and at a random moment
something is lost, in turn: a teacher's process, a whole node (a new one joins), the driver (the
same command then runs again), all with -9; and a node with SIGTERM, as spot instances are. A trial
holds if the set is complete, every shard has the same bytes as the local run's, no key is lost or
doubled, nothing is left behind, and `labeler verify` finds nothing.
The teacher is a tiny random model in transformers, on one thread: its labels are deterministic.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from tests.ray_nodes import RayNodes, ray_nodes
from tests.tiny_model import make_model, make_tokenizer

VICTIMS = ("actor", "node", "driver", "spot")
PATIENCE = 900.0
"""Seconds without any news from a run, until it counts as stuck."""
POLL = 0.05
CORPUS = Path(json.__file__).parents[1]
"""Without --corpus: some sources of the standard library."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = _command(folder, given.corpus)
        log = folder / "local.log"
        _finish(_start([*command, "--out", folder / "local"], log), log)
        expected = _shards(folder / "local")
        trials: list[dict[str, object]] = []
        with ray_nodes(1, 1) as nodes:
            for number in range(given.trials):
                victim = VICTIMS[number % len(VICTIMS)]
                out = folder / f"trial-{number}"
                run = [*command, "--out", out, "--ray", nodes.address]
                begun = time.perf_counter()
                moment = chance.uniform(0.02, 0.9) * len(expected)
                killed_after = _disturbed(run, out, victim, moment, nodes, chance)
                wrong = _differences(out, folder / "local")
                log = out.with_suffix(".log").read_text()
                trials.append(
                    {
                        "victim": victim,
                        "units_before": killed_after,
                        "lost_teachers": log.count("lost a teacher"),
                        "seconds": round(time.perf_counter() - begun),
                        "wrong": wrong,
                    }
                )
                print(f"trial {number + 1}: {trials[-1]}", flush=True)
                if wrong:
                    print(log)
        print(json.dumps({"units": len(expected), "trials": trials}))
        if any(trial["wrong"] for trial in trials):
            sys.exit(1)


def _command(folder: Path, corpus: Path | None) -> list[object]:
    teacher = folder / "teacher"
    teacher.mkdir()
    ids = make_tokenizer(teacher)
    make_model(teacher, vocab_size=ids + 20, max_position_embeddings=512)
    if corpus is None:
        corpus = folder / "corpus.jsonl"
        texts = [path.read_text(errors="replace") for path in sorted(CORPUS.glob("[a-d]*.py"))]
        corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:20]))
    settings = ["--k", 8, "--max-length", 512, "--unit-labels", 6000, "--limit", 20]
    return ["label", corpus, "--model", teacher, "--engine", "transformers", *settings]


def _start(arguments: list[object], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as stream:
        command = [sys.executable, "-m", "labeler", *map(str, arguments)]
        return subprocess.Popen(command, stdout=stream, stderr=stream)


def _finish(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for a run to end well, however long it takes, as long as it prints something."""
    while process.poll() is None:
        silent = time.time() - log.stat().st_mtime
        assert silent < PATIENCE, f"{log}: nothing for {silent:.0f} s"
        time.sleep(POLL)
    assert process.returncode == 0, f"exit code {process.returncode}: {log.read_text()}"


def _disturbed(
    run: list[object],
    out: Path,
    victim: str,
    moment: float,
    nodes: RayNodes,
    chance: random.Random,
) -> int:
    """Label, kill the victim once about `moment` units are journaled, and let the run end."""
    log = out.with_suffix(".log")
    process = _start(run, log)
    while (done := _journaled(out)) < int(moment) and process.poll() is None:
        time.sleep(POLL)
    while victim != "driver" and not (alive := nodes.teachers()) and process.poll() is None:
        time.sleep(POLL)
    time.sleep(chance.uniform(0, 0.5))
    if victim == "driver":
        process.kill()
        process.wait()
        process = _start(run, log)
    elif victim in ("node", "spot"):
        nodes.kill(chance.choice(nodes.nodes), gracefully=victim == "spot")
        nodes.add()
    elif process.poll() is None and alive:
        chance.choice(alive).kill()
    _finish(process, log)
    return done


def _journaled(out: Path) -> int:
    return len(list((out / "journal").glob("unit-*.json")))


def _shards(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "shards").iterdir())}


def _differences(out: Path, local: Path) -> list[str]:
    """Return what is wrong with a set: each line names a file, or is a finding of `verify`."""
    wrong = []
    here, there = _shards(out), _shards(local)
    for name in sorted(here.keys() | there.keys()):
        if name not in here or name not in there:
            wrong.append(f"{name}: only in the {'local' if name in there else 'disturbed'} set")
        elif here[name] != there[name]:
            wrong.append(f"{name}: other bytes than the local one")
    if not wrong and _keys(out) != _keys(local):
        wrong.append("the keys differ")
    wrong += [f"{path.relative_to(out)}: left behind" for path in out.rglob(".tmp-*")]
    wrong += [f"{path.name}: left behind" for path in out.glob(".lock-actor-*")]
    verify = [sys.executable, "-m", "labeler", "verify", out]
    verified = subprocess.run(verify, capture_output=True, text=True, check=False)
    if verified.returncode:
        wrong.append(f"verify: exit code {verified.returncode}: {verified.stdout[-2000:]}")
    return wrong


def _keys(out: Path) -> Counter[tuple[str, int]]:
    """Count the keys of all rows; each must be there once."""
    keys: Counter[tuple[str, int]] = Counter()
    for path in (out / "shards").iterdir():
        rows = pq.read_table(path, columns=["id", "chunk"]).to_pylist()
        keys.update((row["id"], row["chunk"]) for row in rows)
    assert set(keys.values()) == {1}, "a key is doubled"
    return keys


if __name__ == "__main__":
    main()
