"""`trainer rounds` killed with -9 at random moments, against a run that was left alone.

    python -m benchmarks.rounds_kills [--trials 10] [--seed 0]

Two rounds with tiny random models in transformers, whose labels are deterministic. A first run is
left alone. The others are killed: in turn the rounds themselves and the command that they run, half
of the times after random seconds, half as soon as a random number of units and steps is done. The
same command then resumes, until it is killed again. A run that ends is compared with the first one:
the same keys, each once; the same content of every label set; the same losses of every step; the
same figures; no shard that was journaled before a kill written again; nothing left behind.
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
from pathlib import Path

import psutil

from schemas import open_label_set
from tests.tiny_model import TEXT, make_model, make_tokenizer
from trainer.run_files import LOG, read_lines

POLL = 0.01
LABELER = {"engine": "transformers", "max_length": 64, "unit_labels": 40}
KEEP = ("student", "answers", "kept", "labels", "bytes", "kl", "kl_interval", "reverse_kl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10, help="kills (default 10)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = _write_rounds(folder)
        began = time.monotonic()
        _end(_start(file, folder / "alone"), folder / "alone")
        seconds = time.monotonic() - began
        alone, whole = _content(folder / "alone"), _progress(folder / "alone")
        print(f"left alone: {seconds:.0f} s, {whole} units and steps", flush=True)
        kills: list[dict[str, object]] = []
        wrong: list[str] = []
        run = 0
        while len(kills) < given.trials:
            out = folder / f"killed-{run}"
            written: dict[Path, tuple[int, int]] = {}
            running = True
            while running and len(kills) < given.trials:
                victim = ("rounds", "command")[len(kills) % 2]
                process = _start(file, out)
                if len(kills) % 4 < 2:
                    wait, target = chance.uniform(0, 2 * seconds / given.trials), None
                else:
                    wait, target = seconds * 10, _progress(out) + chance.randint(1, whole // 5)
                running = _kill(process, out, victim, wait, target)
                if not running:
                    _end(process, out)
                    break
                kills.append({"run": run, "victim": victim, "done": f"{_progress(out)}/{whole}"})
                print(f"kill {len(kills)}: {kills[-1]}", flush=True)
                written |= {path: _stamp(path) for path in _journaled(out)}
            _end(_start(file, out), out)
            wrong += [f"{p}: written again" for p, stamp in written.items() if _stamp(p) != stamp]
            wrong += [f"{path}: left behind" for path in out.rglob(".tmp-*")]
            found = _content(out)
            wrong += [f"{out.name}: {key} differs" for key in alone if found.get(key) != alone[key]]
            wrong += [f"{out.name}: {key} is new" for key in found if key not in alone]
            verify = [sys.executable, "-m", "labeler", "verify", *map(str, _sets(out))]
            if (code := subprocess.run(verify, capture_output=True, check=False).returncode) != 0:
                wrong.append(f"{out.name}: verify ends with code {code}")
            run += 1
        print(json.dumps({"kills": kills, "runs": run, "wrong": wrong}))
        sys.exit(bool(wrong))


def _write_rounds(folder: Path) -> Path:
    teacher, student = folder / "teacher", folder / "student"
    size = make_tokenizer(teacher)
    make_model(teacher, vocab_size=size, seed=1)
    make_tokenizer(student)
    make_model(student, vocab_size=size, layers=1, seed=2)
    prompts = folder / "prompts.jsonl"
    texts = [" ".join(text.split()[:4]) + f" {i}" for i in range(5) for text in TEXT]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    file = folder / "rounds.yaml"
    settings = {
        "teacher": str(teacher),
        "student": str(student),
        "prompts": str(prompts),
        "rounds": 2,
        "prompts_per_round": 10,
        "held_out": 5,
        "ids": 4,
        "patience": 0,
        "generate": LABELER | {"max_tokens": 12},
        "score": LABELER | {"k": 8, "row_group_labels": 16},
        "train": {"pack_tokens": 32, "packs_per_step": 1, "lr": 1e-3, "save_every": 2},
    }
    file.write_text(json.dumps(settings))
    return file


def _start(file: Path, out: Path) -> subprocess.Popen[bytes]:
    """Start or resume the rounds."""
    command = [sys.executable, "-m", "trainer", "rounds", str(file), "--out", str(out)]
    with out.with_suffix(".log").open("ab") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=stream)


def _end(process: subprocess.Popen[bytes], out: Path) -> None:
    code = process.wait()
    assert code == 0, f"exit code {code}: {out.with_suffix('.log').read_text()}"


def _kill(
    process: subprocess.Popen[bytes], out: Path, victim: str, wait: float, target: int | None
) -> bool:
    """Kill the rounds, or the command that they run; return whether there was one to kill.

    Args:
        process: the rounds.
        out: their folder.
        victim: `rounds`, or `command`.
        wait: seconds until then.
        target: or units and steps.
    """
    began = time.monotonic()
    while time.monotonic() - began < wait and (target is None or _progress(out) < target):
        if process.poll() is not None:
            return False
        time.sleep(POLL)
    children: list[psutil.Process] = []
    while victim == "command" and not children:
        if process.poll() is not None:
            return False
        children = psutil.Process(process.pid).children()
        time.sleep(POLL)
    for each in children or [process]:
        each.kill()
    process.wait()
    return True


def _sets(out: Path) -> list[Path]:
    return sorted(path.parent for path in out.glob("*/*/manifest.json"))


def _journaled(out: Path) -> list[Path]:
    """Return the shards of finished units."""
    entries = out.glob("*/*/journal/unit-*.json")
    return [each.parents[1] / f"shards/part-{each.stem[5:]}.parquet" for each in entries]


def _progress(out: Path) -> int:
    """Return how many units are journaled and steps logged."""
    logs = out.glob(f"*/*/{LOG}")
    return len(_journaled(out)) + sum(len(read_lines(path)) for path in logs)


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def _content(out: Path) -> dict[str, object]:
    """Return what a finished run came to."""
    found: dict[str, object] = {}
    for path in _sets(out):
        name, labels = str(path.relative_to(out)), open_label_set(path)
        groups = [labels.read_row_group(group, ["id", "chunk"]) for group in labels.row_groups]
        keys = sorted((row["id"], row["chunk"]) for group in groups for row in group.to_pylist())
        if len(keys) != len(set(keys)):
            found[f"a key that is twice in {name}"] = keys
        found |= {f"keys of {name}": keys, f"content of {name}": labels.content_digest}
    for path in out.glob(f"*/*/{LOG}"):
        lines = [(line["step"], line["loss"], line["labels"]) for line in read_lines(path)]
        found[f"losses of {path.relative_to(out)}"] = lines
    for each in json.loads((out / "rounds.json").read_text())["rounds"]:
        for name in KEEP:
            value = each.get(name)
            known = value.replace(str(out), "") if isinstance(value, str) else value
            found[f"{name} of round {each['number']}"] = known
    return found


if __name__ == "__main__":
    main()
