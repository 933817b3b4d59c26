"""Label sets written into an object store: the same bytes as in a folder, whatever fails."""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from labeler.labeling.inputs.find_inputs import find_inputs
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.runs import label_units as units_module
from labeler.labeling.runs.label_run import RunSummary, label
from labeler.labeling.runs.locks import actor_lock, rank_lock, wait_for_actor
from labeler.labeling.writing import leases
from labeler.labeling.writing.set_place import open_place
from schemas import SoftshardsError, open_label_set, validate_label_set
from schemas.atomic import write_atomic
from schemas.cache_folder import CACHE, cache_folder
from schemas.file_names import entry_name, shard_name
from schemas.journal import UnitEntry
from schemas.object_store import abort_uploads, create, delete, list_files, put
from schemas.remote import Remote
from tests.faulty_store import FAULTS, Faults, faulty_store
from tests.fork_server import fork_server
from tests.labeler.command_line import CommandLine
from tests.objects import BUCKET, bucket, upload
from tests.tiny_model import TEXT
from trainer.cli import app as trainer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("object_store")]

Write = Callable[..., RunSummary]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write six documents, one per line, and a record without text."""
    path = tmp_path_factory.mktemp("source") / "in.jsonl"
    rows = [{"id": f"r{i}", "text": f"{i} {' '.join(TEXT)}"} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": "bad", "text": ""}]))
    return path


@pytest.fixture(scope="module")
def write(source: Path, teacher: Path) -> Write:
    """Return a function that labels the documents into a folder or URL."""

    def run(out: Path | str, **changes: object) -> RunSummary:
        return label([str(source)], config(out, teacher, **changes))

    return run


@pytest.fixture(scope="module")
def local(write: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documents, labeled into a folder."""
    out = tmp_path_factory.mktemp("local") / "labels"
    assert write(out).units >= 8
    return out


def config(out: Path | str, teacher: Path, **changes: object) -> LabelConfig:
    small = {"engine": "transformers", "k": 4, "max_length": 32, "unit_labels": 100}
    return LabelConfig(model=teacher, out=out, **small, **changes)


def download(url: str, folder: Path) -> Path:
    bucket().get(f"{url}/", str(folder), recursive=True)
    return folder


def assert_same(url: str, local: Path, folder: Path) -> None:
    """Compare a set in the store with a local one, file by file, and check every invariant."""
    here = download(url, folder / url.rpartition("/")[2])
    names = [p.relative_to(local).as_posix() for p in local.rglob("*") if p.is_file()]
    fixed = [n for n in names if not n.startswith((".lock", "journal/unit-")) or "rejects" in n]
    fixed = [n for n in fixed if n not in ("ledger.json", "manifest.json")]  # hold times
    assert {n: (here / n).read_bytes() for n in fixed} == {
        n: (local / n).read_bytes() for n in fixed
    }
    stored = {p.relative_to(here).as_posix() for p in here.rglob("*") if p.is_file()}
    assert {n for n in stored | set(names) if ".lock" not in n} == {
        n for n in names if ".lock" not in n
    }
    assert list(validate_label_set(open_label_set(here))) == []
    assert staged() == []


def staged() -> list[Path]:
    return [path for path in (cache_folder() / "staging").iterdir() if path.is_dir()]


def test_a_set_in_a_store_equals_a_local_one(write: Write, local: Path, tmp_path: Path) -> None:
    faults, url = Faults(), f"{BUCKET}/plain"
    with faulty_store(faults):
        summary = write(url)
    assert (summary.status, summary.out, summary.units_reused) == ("complete", url, 0)
    assert_same(url, local, tmp_path)
    # Three objects per unit, and two dozen for the plan, the tokenizer, the manifests, the leases.
    assert faults.counts["PUT"] <= 3 * summary.units + 24
    assert faults.counts["GET"] <= 20
    again = write(url)
    assert (again.units_reused, again.units_labeled) == (summary.units, 0)


def test_what_a_killed_run_left_is_labeled_again(write: Write, local: Path, tmp_path: Path) -> None:
    url = f"{BUCKET}/redo"
    units = write(url).units
    lost, cut, unjournaled = (f"{url}/{shard_name(n)}" for n in (0, 1, 2))
    store = bucket()
    store.rm(lost)
    store.pipe(cut, store.cat(cut)[:-1])
    store.rm(f"{url}/{entry_name(2)}")
    store.pipe(unjournaled, b"the shard of a run that did not get further")
    again = write(url)
    assert (again.units_reused, again.units_labeled) == (units - 3, 3)
    assert_same(url, local, tmp_path)


def test_ranks_and_appended_records(
    write: Write, local: Path, teacher: Path, tmp_path: Path
) -> None:
    url = f"{BUCKET}/ranks"
    first = write(url, rank=0, world_size=2)
    assert (first.status, first.units_missing) == ("running", first.units // 2)
    assert write(url, rank=1, world_size=2).status == "complete"
    assert_same(url, local, tmp_path)
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({"id": "new", "text": " ".join(TEXT)}) + "\n")
    for out in (download(url, tmp_path / "grown"), url):
        grown = label([str(more)], config(out, teacher, append=True))
        assert (grown.status, grown.units_reused) == ("complete", first.units)
        assert grown.units > first.units
    assert_same(url, tmp_path / "grown", tmp_path / "again")


def test_faults_of_every_kind(write: Write, local: Path, tmp_path: Path) -> None:
    url, faults = f"{BUCKET}/faults", Faults(dict.fromkeys(FAULTS, 0.04))
    with faulty_store(faults):
        assert write(url).status == "complete"
    assert sum(faults.counts[fault] for fault in FAULTS) >= 5
    assert_same(url, local, tmp_path)


def test_a_store_that_is_gone_ends_a_run_that_resumes(
    write: Write, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _seconds: None)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    url, faults = f"{BUCKET}/gone", Faults()
    real = units_module.write_unit

    def write_and_lose(*arguments: object, **options: object) -> UnitEntry:
        entry = real(*arguments, **options)
        if entry.unit == 2:
            faults.rates = {"error": 1.0}
        return entry

    with faulty_store(faults), monkeypatch.context() as patch:
        patch.setattr(units_module, "write_unit", write_and_lose)
        with pytest.raises(SoftshardsError, match=r"the store fails.*\n.*it resumes"):
            write(url)
    assert write(url).units_reused == 2
    assert_same(url, local, tmp_path)


def test_every_answer_to_a_write_is_lost_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second attempt finds the object of the first, and knows it."""
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _seconds: None)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    faults = Faults({"lost": 1.0}, methods=("PUT",))
    with faulty_store(faults):
        remote = Remote(f"{BUCKET}/lost")
        create(remote, "mine", b"content")
        assert faults.counts["lost"] >= 1
        assert remote.read("mine") == b"content"
        with pytest.raises(FileExistsError):
            create(remote, "mine", b"different")
    assert Remote(f"{BUCKET}/lost").read("mine") == b"content"


def test_a_name_is_not_a_pattern() -> None:
    odd, other = Remote(f"{BUCKET}/a*[b]? #%20 ü"), Remote(f"{BUCKET}/axbx #%20 ü")
    for remote, number in ((odd, 1), (other, 2)):
        create(remote, f"journal/unit-00000{number}.json", b"{}")
        assert remote.names("journal", "unit-*.json") == [f"unit-00000{number}.json"]
    delete(odd, list(list_files(odd)))
    assert list_files(odd) == {}
    assert list(list_files(other)) == ["journal/unit-000002.json"]


def test_large_files_go_in_parts_that_are_cleaned_up(tmp_path: Path) -> None:
    remote = Remote(f"{BUCKET}/parts")
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(101 << 20)
    put(remote, "shards/part-000000.parquet", large)
    assert list_files(remote)["shards/part-000000.parquet"].size == 101 << 20
    for number in (0, 1):
        key = {"Bucket": "bucket", "Key": f"parts/shards/part-00000{number}.parquet"}
        remote.filesystem.call_s3("create_multipart_upload", **key)
    assert abort_uploads(remote, lambda name: name == "shards/part-000001.parquet") == 1
    left = remote.filesystem.list_multipart_uploads("bucket")
    assert [upload["Key"] for upload in left] == ["parts/shards/part-000000.parquet"]
    assert abort_uploads(remote, lambda _name: True) == 1


def test_one_process_per_rank() -> None:
    url = f"{BUCKET}/busy"
    with open_place(url) as place, rank_lock(place, 0, 1):
        with pytest.raises(SoftshardsError, match="another process is writing"):  # noqa: SIM117
            with open_place(url) as other, rank_lock(other, 0, 1):
                pass
        # From another machine, the staging folder does not tell; the lease does.
        with (
            pytest.raises(SoftshardsError, match=f"process {os.getpid()} on"),
            open_place(url, writer="another") as other,
            rank_lock(other, 0, 1),
        ):
            pass
    with open_place(url) as place, rank_lock(place, 0, 1):
        pass


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases expire after a second, and their holders seem to be on another machine."""
    for name, seconds in {"RENEW": 60.0, "EXPIRY": 1.0, "POLL": 0.05}.items():
        monkeypatch.setattr(leases, name, seconds)
    monkeypatch.setattr(leases, "BOOT", Path("missing"))


@pytest.mark.usefixtures("short_leases")
def test_a_lease_that_nobody_renews_passes_on() -> None:
    remote = Remote(f"{BUCKET}/expired")
    with leases.hold_lease(remote, ".lock") as first:
        first.require()
        with leases.hold_lease(remote, ".lock") as second:
            second.require()
            with pytest.raises(SoftshardsError, match="another process has taken over"):
                first.require()
    with leases.hold_lease(remote, ".lock", wait_to="plan") as third:
        third.require()


@pytest.mark.usefixtures("short_leases")
def test_a_lease_that_is_renewed_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW", 0.1)
    remote = Remote(f"{BUCKET}/renewed")
    with leases.hold_lease(remote, ".lock") as lease:
        with pytest.raises(leases.LeaseTaken), leases.hold_lease(remote, ".lock"):
            pass
        lease.require()


def test_a_lost_actor_is_waited_for_until_it_cannot_write() -> None:
    url = f"{BUCKET}/actor"
    with (
        open_place(url, writer="driver") as driver,
        open_place(url, writer="actor") as actor,
        contextlib.ExitStack() as held,
    ):
        held.enter_context(actor_lock(actor, "a"))
        assert not wait_for_actor(driver, "a", seconds=0)
        ending = threading.Timer(1.5, held.close)
        ending.start()
        assert wait_for_actor(driver, "a", seconds=300)
        ending.join()
        assert leases.lease_names(Remote(url), ".lock-actor-") == []


def test_two_writers_of_one_unit(write: Write, local: Path, tmp_path: Path) -> None:
    """The second to journal a unit, after its lease expired, adopts equal labels and no others."""
    url = f"{BUCKET}/twice"
    write(url)
    theirs = json.loads(bucket().cat(f"{url}/{entry_name(0)}"))
    with open_place(url) as place:
        place.pull()
        entry = UnitEntry.model_validate(theirs | {"provenance": {"engine": "ours"}}).sealed()
        own = place.folder / entry_name(0)
        place._create(entry_name(0), entry.model_dump_json().encode())
        assert json.loads(bucket().cat(f"{url}/{entry_name(0)}")) == theirs
        # Sent as this process does: its ledger sums the entry that the store has.
        del place._sent[entry_name(0)]
        write_atomic(own, entry.model_dump_json().encode())
        place.publish_unit(0)
        assert json.loads(own.read_bytes()) == theirs
        place.publish()
        assert json.loads(bucket().cat(f"{url}/{entry_name(0)}")) == theirs
        other = entry.model_copy(update={"rejects_sha256": "0" * 64}).sealed()
        with pytest.raises(SoftshardsError, match="in the meantime"):
            place._create(entry_name(0), other.model_dump_json().encode())
    assert write(url).units_labeled == 1
    assert_same(url, local, tmp_path)


def test_a_web_server_is_not_written_to(write: Write) -> None:
    with pytest.raises(SoftshardsError, match="a web server cannot be written to"):
        write("http://127.0.0.1:9/labels")


def test_a_store_without_conditional_writes_is_refused(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One that ignores the condition, and those where fsspec looks before it writes."""
    monkeypatch.setattr(leases, "CONDITIONAL", set())
    url = f"{BUCKET}/unconditional"
    with (
        faulty_store(Faults(dropped=("if-none-match",))),
        pytest.raises(SoftshardsError, match="ignores the condition of a write"),
    ):
        write(url)
    assert list_files(Remote(url)) == {}
    with pytest.raises(SoftshardsError, match=r"cannot write an object only.*\n.*give its path"):
        write(f"file://{tmp_path}/labels")
    assert not (tmp_path / "labels").exists()
    assert write(url).status == "complete"
    assert ("s3", "bucket") in leases.CONDITIONAL


def test_other_commands_write_there(
    write: Write, local: Path, tmp_path: Path, labeler: CommandLine
) -> None:
    url, half = f"{BUCKET}/commands", tmp_path / "half.view.json"
    write(url)
    assert "would overwrite its source" in labeler("convert", url, url).err
    small = labeler("convert", url, f"{url}-small", "--json").json
    assert labeler("convert", local, tmp_path / "small", "--json").json["kl"] == small["kl"]
    assert labeler("convert", f"{url}-small", f"{url}-plain", "--codec", "plain").code == 0
    there = open_label_set(f"{url}-plain")
    assert there.content_digest != open_label_set(local).content_digest  # compact rounds
    assert there.rows == open_label_set(local).rows
    assert labeler("merge", url, local, f"{url}-both").code == 2
    merged = labeler("merge", url, local, f"{url}-both", "--on-duplicate", "first", "--json").json
    assert (merged["out"], merged["rows"]) == (f"{url}-both", there.rows)
    flags = ("--where", "n_labels > 20", "--materialize", f"{url}-long")
    assert labeler("curate", local, "--out", half, *flags).code == 0
    assert open_label_set(f"{url}-long").rows == open_label_set(half).rows
    lines = f"{url}/lines.jsonl"
    export = ("export", url, lines, "--format", "jsonl")
    assert labeler(*export, "--json").json["rows"] == there.rows
    assert bucket().cat(lines).count(b"\n") == there.rows
    assert "exists already" in labeler(*export).err
    assert labeler(*export, "--replace").code == 0


def test_commands_read_there(local: Path, tmp_path: Path, labeler: CommandLine) -> None:
    url, name = upload(local, "read"), {"path": ""}
    page, half = tmp_path / "page.html", f"{BUCKET}/half.view.json"
    for command in ("inspect", "verify"):
        here, there = (labeler(command, place, "--json").json for place in (local, url))
        assert there["path"] == url
        assert there | name == here | name
    assert labeler("inspect", url, "--json").json["rejects"] == 1
    for flags in (("--rejects",), ("--row", "r3"), ("--row", "first", "--json")):
        assert labeler("inspect", url, *flags) == labeler("inspect", local, *flags)
    assert labeler("view", url, local, "--out", page, "--json").json["rows"] == 20
    assert url.encode() not in page.read_bytes()
    compared = labeler("compare", url, local, "--json").json
    assert (compared["a"]["path"], compared["kl_a_to_b"]["max"]) == (url, 0)
    measured = ("--tokens", "1e6", "--json")
    plans = [labeler("plan-cluster", place, *measured).json["measured"] for place in (local, url)]
    assert plans[0] == plans[1]
    rules = ("--where", "n_labels > 20", "--verify-command", "true")
    made = labeler("curate", url, "--out", half, "--split", "rest=0.5", *rules, "--json").json
    here = labeler("curate", local, "--out", tmp_path / "h.view.json", *rules, "--json").json
    assert made["after"] == here["after"]
    parts = [open_label_set(made["views"][part]) for part in ("train", "rest")]
    assert sum(part.rows for part in parts) == here["after"]["rows"]
    assert labeler("inspect", made["views"]["rest"], "--json").json["rows"] == parts[1].rows
    assert "both in one bucket" in labeler("curate", url, "--out", "a.view.json", *rules).err
    assert find_inputs([url])[0].labels.rows == open_label_set(local).rows


def test_verify_reads_the_store_and_not_the_cache(local: Path, labeler: CommandLine) -> None:
    url, store = upload(local, "altered"), bucket()
    labels = open_label_set(url)
    for group in labels.row_groups:
        labels.read_row_group(group)  # now it is cached

    def problems() -> dict[str, str]:
        found = labeler("verify", url, "--json")
        assert found.code == 1, found.err
        return {p["where"]: p["what"] for p in json.loads(found.out)["problems"]}

    shard = store.cat(f"{url}/{shard_name(1)}")
    store.pipe(f"{url}/{shard_name(0)}", store.cat(f"{url}/{shard_name(0)}") + b"more")
    store.pipe(f"{url}/{shard_name(1)}", shard[:40] + b"?" + shard[41:])
    store.rm(f"{url}/{shard_name(2)}")
    store.rm(f"{url}/{entry_name(3)}")
    store.pipe(f"{url}/plan.parquet", b"nothing")
    store.pipe(f"{url}/ledger.json", b"{}")
    store.pipe(f"{url}/shards/more.parquet", b"nothing")
    found = problems()
    assert found.keys() >= {f"{shard_name(n)}, row group 0" for n in (1, 2)}
    for where, what in {
        shard_name(0): "bytes, the index says",
        f"{url}/{entry_name(3)}": "missing",
        f"{url}/plan.parquet": "the plan is altered",
        "shards/more.parquet": "not declared",
    }.items():
        assert what in found[where]
    store.pipe(f"{url}/index/page-000000.parquet", b"nothing")
    assert list(problems()) == [f"{url}/index/page-000000.parquet"]
    store.rm(f"{url}/manifest.json")
    assert list(problems()) == [f"{url}/manifest.json"]
    missing = labeler("verify", f"{url}-gone")
    assert (missing.code, "there is no such object" in missing.err) == (2, True)


def test_a_set_written_there_trains_like_a_local_one(
    write: Write, local: Path, teacher: Path, tmp_path: Path
) -> None:
    url = f"{BUCKET}/trained"
    write(url)
    runs = {url: tmp_path / "there", str(local): tmp_path / "here"}
    for labels, out in runs.items():
        flags = ["--labels", labels, "--student", str(teacher), "--out", str(out)]
        more = ["--pack-tokens", "64", "--window", "2", "--eval-labels", labels]
        assert trainer.meta(["train", *flags, *more], result_action="return_value") == 0
    there, here = (out / "final/model.safetensors" for out in runs.values())
    assert there.read_bytes() == here.read_bytes()
    assert here.read_bytes() != (teacher / "model.safetensors").read_bytes()


def test_import_there(local: Path, teacher: Path, labeler: CommandLine) -> None:
    assert labeler("export", local, "rows.jsonl", "--format", "jsonl").code == 0
    flags = ("--tokenizer", teacher, "--teacher", teacher, "--json", "--out")
    url = f"{BUCKET}/imported"
    sets = [
        open_label_set(labeler("import", "rows.jsonl", *flags, out).json and out)
        for out in ("imported", url)
    ]
    assert sets[0].content_digest == sets[1].content_digest
    assert sets[1].rows == open_label_set(local).rows
    assert labeler("verify", url).code == 0


def test_repair_in_a_store(write: Write, local: Path, tmp_path: Path, labeler: CommandLine) -> None:
    url = f"{BUCKET}/damaged"
    write(url)
    assert "nothing to repair" in labeler("repair", url).out
    store = bucket()
    store.rm(f"{url}/manifest.json")
    store.rm(f"{url}/{entry_name(1)}")
    store.pipe(f"{url}/{shard_name(0)}", b"nothing")
    planned = labeler("repair", url, "--dry-run", "--json")
    assert planned.code == 1
    assert not store.exists(f"{url}/manifest.json")
    done = labeler("repair", url, "--json")
    assert (done.code, json.loads(done.out)["redo"]) == (1, [0])
    assert json.loads(done.out) | {"dry_run": True} == json.loads(planned.out)
    assert store.cat(f"{url}/quarantine/{shard_name(0)}") == b"nothing"
    assert write(url).units_labeled == 1
    store.rm(f"{url}/quarantine", recursive=True)
    here = download(url, tmp_path / "repaired")
    assert open_label_set(here).content_digest == open_label_set(local).content_digest
    assert staged() == []


def test_kill_9_loses_nothing(
    source: Path,
    teacher: Path,
    local: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Each kill hits a run of its own at a random moment, half of them behind a faulty network."""
    dice, asked = random.Random(3), request.config.getoption("--kills")
    kills = 2 if asked == 5 else asked  # 5 by default: each costs ten seconds here
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    small = ["--engine", "transformers", "--k", 4, "--max-length", 32, "--unit-labels", 100]

    def start(url: str, log: Path):
        arguments = ("label", source, "--model", teacher, "--out", url, *small, "--json")
        environment = {n: os.environ[n] for n in ("AWS_ENDPOINT_URL", CACHE)}
        with log.open("a") as stream:
            return fork_server("tests.labeler.preload").start(
                "labeler", *arguments, stderr=stream, environment=environment
            )

    def finish(url: str) -> dict[str, object]:
        process = start(url, tmp_path / "log")
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, (tmp_path / "log").read_text()
        return json.loads(output)

    started = time.monotonic()
    units = finish(f"{BUCKET}/killed-whole")["units"]
    whole = time.monotonic() - started
    for number in range(kills):
        url = f"{BUCKET}/killed-{number}"
        faults = Faults(dict.fromkeys(FAULTS, 0.02 * (number % 2)), dice=random.Random(number))
        with faulty_store(faults):
            process = start(url, tmp_path / "log")
            deadline, target = time.monotonic() + dice.uniform(0, whole), dice.randrange(units)
            while process.poll() is None and time.monotonic() < deadline + whole:
                # Half of the kills: by time, from the first import on; the others: among the units.
                done = len([n for n in bucket().find(url.removeprefix("s3://")) if ".json" in n])
                if (number % 4 < 2 and time.monotonic() > deadline) or done > target:
                    break
            process.kill()
            process.communicate()
            journaled = [
                name
                for name in list_files(Remote(url))
                if name.startswith("journal/unit-") and name.endswith(".json")
            ]
            summary = finish(url)
        assert summary["status"] == "complete"
        assert summary["units_reused"] == len(journaled)
        assert_same(url, local, tmp_path)
