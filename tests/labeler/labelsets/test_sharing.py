"""Push and pull through the command line, against a local stand-in for the Hub."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from huggingface_hub import DatasetCard, constants

import schemas
from labeler.cli import main
from schemas.manifest import write_manifest
from schemas.validate import validate_label_set
from tests.labeler.conftest import Run
from tests.labeler.hub import TOKEN, Hub, hub
from tests.tiny_model import TEXT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens"),
]

REPO = "me/labels"


@pytest.fixture(scope="module")
def labels(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a finished label set of several shards."""
    folder = tmp_path_factory.mktemp("shared")
    rows = [{"id": f"doc{i}", "text": " ".join(TEXT[i % 5 :])} for i in range(12)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = ["--k", "8", "--max-length", "64", "--unit-labels", "100", "--engine", "transformers"]
    command = [sys.executable, "-m", "labeler", "label", str(folder / "corpus.jsonl")]
    command += ["--model", str(teacher), "--out", str(folder / "labels"), *small]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return folder / "labels"


@pytest.fixture
def server() -> Iterator[Hub]:
    with hub() as running:
        yield running


@pytest.fixture
def environment(server: Hub, tmp_path: Path) -> dict[str, str]:
    """Return the environment in which the library takes the stand-in for the Hub."""
    ours = {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf")}
    switches = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "TERM": "dumb"}
    return os.environ | ours | switches


@pytest.fixture
def run(run_labeler: Run, environment: dict[str, str]) -> Run:
    """Return a function that runs the labeler in a separate process, logged in."""

    def run(*arguments: object, **changes: str) -> subprocess.CompletedProcess[str]:
        return _checked(run_labeler(*arguments, env=environment | changes, code=None))

    return run


@pytest.fixture
def labeler(
    server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Run:
    """Return a function that runs it in this process, where the library is already configured."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        line = ["labeler", *map(str, arguments)]
        if "--endpoint" not in line:
            line += ["--endpoint", server.url]
        monkeypatch.setattr("sys.argv", line)
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        code = int(caught.value.code or 0)
        return _checked(subprocess.CompletedProcess(line, code, printed.out, printed.err))

    return run


def _checked(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert TOKEN not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done


def good(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def push(labels: Path, *more: str) -> list[object]:
    return ["push", labels, REPO, "--license", "apache-2.0", "--json", *more]


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files of a label set, without locks, the card and the library's cache."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    named = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {n: b for n, b in named.items() if not n.startswith((".lock", ".cache", "README"))}


def assert_same_set(pulled: Path, labels: Path) -> None:
    assert contents(pulled) == contents(labels)
    opened = schemas.open_label_set(pulled)
    assert not list(validate_label_set(opened))


def test_round_trip(run: Run, server: Hub, labels: Path, tmp_path: Path) -> None:
    copy = tmp_path / "labels"
    shutil.copytree(labels, copy)
    (copy / "notes.txt").write_text("private")
    (copy / "journal" / ".tmp-1-unit-000009.json").write_bytes(b"half")
    pushed = run(*push(copy, "--private"))
    facts = good(pushed)
    assert "left out: notes.txt" in pushed.stderr
    assert server.repos[REPO].private
    there = server.repos[REPO].head()
    assert set(there) == {*contents(labels), "README.md", ".gitattributes"}
    assert "manifest.json" not in server.repos[REPO].branches["main"][-2]  # it goes last
    out = tmp_path / "pulled"
    assert good(run("pull", REPO, out, "--json"))["commit"] == facts["commit"]
    assert_same_set(out, labels)
    assert (out / "README.md").read_bytes() == there["README.md"]
    frame = schemas.scan(out).select("id", "n_labels").collect()
    raw = pl.scan_parquet(out / "shards" / "*.parquet").select("id", "n_labels").collect()
    assert frame.equals(raw)

    server.log.clear()
    assert good(run(*push(copy)))["commit"] == facts["commit"]
    good(run("pull", REPO, out, "--json"))
    moved = [line for line in server.log if line.startswith("PUT") or "/shards/" in line]
    assert not moved, "existing files were sent again"


def test_through_xet(run: Run, server: Hub, labels: Path, tmp_path: Path) -> None:
    server.xet = tmp_path / "xet"
    server.know(labels)
    xet = {"HF_HUB_DISABLE_XET": "0", "HF_XET_CACHE": str(tmp_path / "xet-cache")}
    good(run(*push(labels), **xet))
    assert not [line for line in server.log if line.startswith("PUT")]
    good(run("pull", REPO, tmp_path / "pulled", "--json", **xet))
    fetched = [line for line in server.log if line.startswith("GET") and "/shards/" in line]
    assert not fetched, "the shards came by HTTP"
    assert_same_set(tmp_path / "pulled", labels)


def test_card(labeler: Run, server: Hub, labels: Path, tmp_path: Path, teacher: Path) -> None:
    """A dry run prints the card, and asks the Hub nothing."""
    (tmp_path / "TERMS.md").write_text("Not for **weapons**.\n")
    terms = ["--terms", tmp_path / "TERMS.md", "--teacher", "Some/Teacher"]
    done = labeler("push", labels, REPO, "--license", "other", *terms, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not server.log
    assert f"would go to {server.url}/datasets/{REPO}" in done.stderr
    card = DatasetCard(done.stdout)
    manifest = schemas.open_label_set(labels).manifest
    facts = card.data.to_dict()
    assert facts["license"] == "other"
    (config,) = facts["configs"]
    (split,) = config["data_files"]
    assert {path.relative_to(labels).as_posix() for path in labels.glob(split["path"])} == set(
        schemas.open_label_set(labels).shards
    )
    ours = facts["softshards"]
    assert (ours["teacher"], ours["k"]) == ("Some/Teacher", 8)
    assert ours["identity_digest"] == manifest.identity_digest
    assert ours["manifest_digest"] == manifest.self_digest
    assert (ours["rows"], ours["labels"]) == (manifest.totals.rows, manifest.totals.labels)
    assert "Not for **weapons**." in card.text
    assert str(teacher) not in str(card)
    unnamed = labeler("push", labels, REPO, "--license", "unknown", "--dry-run").stdout
    assert DatasetCard(unnamed).data.to_dict()["softshards"]["teacher"] == teacher.name
    assert "License: unknown" in unnamed
    assert "not stated" in unnamed


def test_killed_push_resumes(
    labeler: Run, server: Hub, labels: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """Kill the push during the upload of a shard: files that arrived are not sent again."""
    last = f"/upload/{_digest(labels / 'shards' / 'part-000000.parquet')}"
    server.fault = lambda _, path: "hang" if path == last else "none"
    command = [sys.executable, "-m", "labeler", *map(str, push(labels))]
    killed = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    assert server.hanging.wait(600)
    killed.kill()
    killed.wait()
    refused = labeler("pull", REPO, tmp_path / "pulled")
    assert refused.returncode == 2
    assert "holds no complete label set" in refused.stderr
    before, server.fault = set(server.blobs), lambda _, __: "none"
    server.log.clear()
    good(labeler(*push(labels)))
    sent = {line.split("/")[-1] for line in server.log if line.startswith("PUT")}
    assert Path(last).name in sent
    assert not sent & before
    good(labeler("pull", REPO, tmp_path / "pulled", "--json"))
    assert_same_set(tmp_path / "pulled", labels)


def wait_until_recorded(folder: Path, names: set[str]) -> None:
    """Wait until the Hub's library has noted that it has these files."""
    notes = folder / ".cache" / "huggingface" / "download"
    while not all((notes / f"{name}.metadata").exists() for name in names):
        time.sleep(0.05)


def test_killed_pull_resumes(
    labeler: Run, server: Hub, labels: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    good(labeler(*push(labels)))
    out = tmp_path / "pulled"

    def hang(method: str, path: str) -> Any:
        slow = method == "GET" and path.endswith("shards/part-000001.parquet")
        return "hang" if slow else "none"

    server.fault = hang
    command = [sys.executable, "-m", "labeler", "pull", REPO, str(out)]
    killed = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    assert server.hanging.wait(600)
    late = {"manifest.json", "shards/part-000001.parquet"}
    wait_until_recorded(out, contents(labels).keys() - late)
    killed.kill()
    killed.wait()
    assert not (out / "manifest.json").exists()  # a partial set does not pass for a complete one
    here = {n for n, data in contents(out).items() if data == contents(labels).get(n)}
    server.fault = lambda _, __: "none"
    server.log.clear()
    good(labeler("pull", REPO, out, "--json"))
    again = [line for line in server.log if line.startswith("GET") and "/resolve/" in line]
    assert not [name for name in here if any(line.endswith(name) for line in again)]
    assert_same_set(out, labels)


def test_broken_connections(labeler: Run, server: Hub, labels: Path, tmp_path: Path) -> None:
    """The connection breaks half way, up and down: the library resumes, the files are complete."""
    broken = []

    def once(method: str, path: str) -> Any:
        large = "/upload/" in path or (method == "GET" and path.endswith("part-000000.parquet"))
        if large and method not in broken:
            broken.append(method)
            return "half"
        return "none"

    server.fault = once
    good(labeler(*push(labels)))
    good(labeler("pull", REPO, tmp_path / "pulled", "--json"))
    assert broken == ["PUT", "GET"]
    again = [line for line in server.log if line.endswith("part-000000.parquet") and "GET" in line]
    assert len(again) == 2
    assert_same_set(tmp_path / "pulled", labels)


def test_altered_on_the_hub(labeler: Run, server: Hub, labels: Path, tmp_path: Path) -> None:
    good(labeler(*push(labels)))
    whole = server.repos[REPO].head()
    shard = "shards/part-000001.parquet"
    flipped = bytes([*whole[shard][:99], whole[shard][99] ^ 1, *whole[shard][100:]])
    rejects = "journal/unit-000000.rejects.parquet"
    missing = {name: data for name, data in whole.items() if name != shard}
    states = {
        "flipped": (whole | {shard: flipped}, shard),
        "missing": (missing, shard),
        "stray": (whole | {"shards/part-000099.parquet": whole[shard]}, "part-000099"),
        "rejects": (whole | {rejects: whole[shard]}, rejects),
        "manifest": (whole | {"manifest.json": whole["manifest.json"][:-9]}, "manifest.json"),
    }
    for name, (files, named) in states.items():
        server.repos[REPO].branches["main"].append(files)
        done = labeler("pull", REPO, tmp_path / name)
        assert done.returncode == 2, name
        assert named in done.stderr, name
    server.repos[REPO].branches["main"].append(whole)
    good(labeler("pull", REPO, tmp_path / "flipped", "--json"))
    assert_same_set(tmp_path / "flipped", labels)


def test_surplus_on_the_hub(labeler: Run, server: Hub, tmp_path: Path) -> None:
    """In every folder of a set, one of hidden states included; elsewhere, it is left there."""
    golden = Path("tests/golden/format-1-states-2")
    good(labeler(*push(golden)))
    whole = server.repos[REPO].head()
    surplus = [
        *("shards/part-000099.parquet", "shards/.hidden", "hidden/part-000099.parquet"),
        *("head/other.safetensors", "tokenizer/added.json", "index/page-000007.parquet"),
        *("journal/unit-000099.json", "journal/plan-0007.rejects.parquet", "plan-0007.parquet"),
    ]
    out = tmp_path / "out"
    for name in surplus:
        server.repos[REPO].branches["main"].append(whole | {name: b"surplus"})
        assert_error(labeler("pull", REPO, out), f"{name}", "the download is not the label set")
    outside = {"code/run.py": b"x", "notes.txt": b"y", "shards/.tmp-1": b"z"}
    server.repos[REPO].branches["main"].append(whole | outside)
    done = labeler("pull", REPO, out, "--json")
    assert good(done)
    assert "left out: code/run.py, notes.txt, shards/.tmp-1" in done.stderr
    expected = {("expected.json", (golden / "expected.json").read_bytes())}  # not part of the set
    assert contents(out).items() == contents(golden).items() - expected


def test_pull_of_a_view(labeler: Run, server: Hub, labels: Path, tmp_path: Path) -> None:
    """A view in a repository is not taken for a set, alone or under a set's name."""
    good(labeler(*push(labels)))
    view = json.dumps({"label_set": "../labels", "self_digest": "0" * 64}).encode()
    for number, files in enumerate(({"good.view.json": view}, {"manifest.json": view})):
        server.repos[REPO].branches["main"].append(files)
        out = tmp_path / str(number)
        assert_error(labeler("pull", REPO, out), "manifest")
        assert not out.exists()


def test_newer_state_replaces_older(
    labeler: Run, server: Hub, labels: Path, tmp_path: Path
) -> None:
    """Only with --replace; files of the older state leave repository and folder."""
    older, out = tmp_path / "older", tmp_path / "pulled"
    shutil.copytree(labels, older)
    manifest = schemas.open_label_set(older).manifest
    assert manifest.plan is not None
    plan = manifest.plan.model_copy(update={"path": "plan-0007.parquet"})
    (older / manifest.plan.path).rename(older / plan.path)
    changed = {"plan": plan, "provenance": manifest.provenance | {"note": "of an earlier state"}}
    write_manifest(older, manifest.model_copy(update=changed))
    good(labeler(*push(older)))
    repo = server.repos[REPO]
    repo.branches["main"].append(repo.head() | {"other/file.txt": b"not ours"})
    good(labeler("pull", REPO, out, "--json"))
    assert_same_set(out, older)

    assert_error(labeler(*push(labels)), "an earlier state", "--replace")
    good(labeler(*push(labels, "--replace")))
    assert set(repo.head()) == {*contents(labels), "README.md", ".gitattributes", "other/file.txt"}
    assert_error(labeler("pull", REPO, out), "an earlier state", "--replace")
    good(labeler("pull", REPO, out, "--replace", "--json"))
    assert_same_set(out, labels)


def test_branches_and_other_sets(labeler: Run, server: Hub, labels: Path, tmp_path: Path) -> None:
    good(labeler(*push(labels, "--revision", "v1")))
    assert "manifest.json" not in server.repos[REPO].head()
    assert_error(labeler("pull", REPO, tmp_path / "a"), "no complete label set", "--revision")
    assert_error(labeler("pull", REPO, tmp_path / "a", "--revision", "v2"), "no such revision")
    good(labeler("pull", REPO, tmp_path / "a", "--revision", "v1", "--json"))

    public = labeler(*push(labels, "--private"))
    assert_error(public, "exists already and is public; nothing was sent", "leave out --private")
    foreign = tmp_path / "foreign"
    shutil.copytree(labels, foreign)
    assert_error(labeler("pull", REPO, foreign, "--revision", "v1"), "were not pulled")
    golden = Path("tests/golden/format-1-plain-1")
    other = labeler(*push(golden, "--revision", "v1"))
    assert_error(
        other, "a label set is there already", "different teacher or settings", "--replace"
    )
    good(labeler("push", golden, "me/golden", "--license", "unknown", "--json"))
    assert_error(
        labeler("pull", "me/golden", tmp_path / "a"), "a label set is there already", "--replace"
    )
    assert_same_set(tmp_path / "a", labels)
    good(labeler("pull", "me/golden", tmp_path / "a", "--replace", "--json"))
    assert contents(tmp_path / "a").items() == contents(golden).items() - {
        ("expected.json", (golden / "expected.json").read_bytes())  # not part of the set
    }


def test_refusals_of_the_hub(
    labeler: Run, server: Hub, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_error(labeler("pull", "me/none", tmp_path / "none"), "no such dataset", "hf auth login")
    bad = labeler("push", labels, REPO, "--license", "mine")
    assert_error(bad, '"license" must be one of', "--license")
    nobody = ["--endpoint", "http://127.0.0.1:9"]
    assert_error(labeler(*push(labels, *nobody)), "127.0.0.1:9/datasets/me/labels", "same command")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert_error(labeler(*push(labels)), "Invalid username", "hf auth login")
    assert not server.blobs, "files were sent before the Hub had accepted card and token"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_error(labeler(*push(labels)), "HF_HUB_OFFLINE")


@pytest.mark.parametrize(
    ("state", "message", "hint"),
    [
        ("unlicensed", "no license is guessed", "--license unknown"),
        ("nameless", "not a repository's name", "OWNER/NAME"),
        ("view", "a view only selects rows", "curate --materialize"),
        ("running", "not finished", "the command that was making it"),
        ("altered", "row group 0 was altered", "hint"),
    ],
)
def test_refused_before_the_push(
    labeler: Run, server: Hub, labels: Path, tmp_path: Path, state: str, message: str, hint: str
) -> None:
    """The Hub is not asked anything."""
    path, repo, license = tmp_path / "labels", REPO, ["--license", "other"]
    shutil.copytree(labels, path)
    if state == "unlicensed":
        license = []
    elif state == "nameless":
        repo = "labels"
    elif state == "view":
        path = tmp_path / "good.view.json"
        path.write_text("{}")
    elif state == "running":
        manifest = schemas.open_label_set(path).manifest.model_copy(update={"status": "running"})
        write_manifest(path, manifest)
    else:
        shard = path / "shards" / "part-000000.parquet"
        shard.write_bytes(b"PAR2" + shard.read_bytes()[4:])
    assert_error(labeler("push", path, repo, *license), message, hint)
    assert not server.log


def assert_error(done: subprocess.CompletedProcess[str], *messages: str) -> None:
    assert done.returncode == 2, done.stderr
    for message in messages:
        assert message in done.stderr


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
