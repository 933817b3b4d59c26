"""The fuzzer of label sets and views: most are sealed again, and read in every way."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from labeler.labeling.planning.cluster_config import ClusterConfig
from labeler.labeling.planning.plan_cluster import run_plan_cluster
from labeler.labelsets.compare.compare_config import CompareConfig
from labeler.labelsets.compare.compare_report import run_compare
from labeler.labelsets.curate.curate import run_curate
from labeler.labelsets.curate.curate_config import CurateConfig
from labeler.labelsets.derive.convert import run_convert
from labeler.labelsets.derive.derive_config import ConvertConfig
from labeler.labelsets.exchange.exchange_config import ExportConfig
from labeler.labelsets.exchange.export_set import run_export
from labeler.labelsets.inspect.inspect_command import run_inspect
from labeler.labelsets.inspect.inspect_config import InspectConfig
from labeler.labelsets.repair.diagnosis import diagnose
from labeler.labelsets.repair.repair import describe_repair
from labeler.labelsets.view.view_command import run_view
from labeler.labelsets.view.view_config import ViewConfig
from schemas import (
    SoftshardsError,
    file_names,
    journal,
    journal_batches,
    open_label_set,
    scan,
    set_files,
)
from schemas.arrow import INDEX_SCHEMA
from schemas.file_names import hidden_name
from schemas.fingerprint import sha256_bytes
from schemas.hidden_part import state_columns
from schemas.index import WITH_LENGTHS, read_lengths
from schemas.version import COMPACT_1, PLAIN_1, STATES_2
from schemas.view import write_view
from tests.hostile.fuzz import Target
from tests.hostile.late_sets import write_late_set
from tests.hostile.sealed import (
    files_of,
    findings,
    read_json,
    refoot,
    reidentify,
    reseal,
    reseal_head,
    reseal_part,
    rewrite_rows,
    trained_on,
    write_index_page,
    write_json,
)
from tests.schemas.sets import GOLDEN, varied_table, view_of, write_set
from tests.schemas.state_sets import LAYERS, write_state_set
from trainer.evaluate.grouping import plan_groups
from trainer.evaluate.teacher_facts import measure_teacher

VIEW = "some.view.json"
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 7, 255, 65536, 2**31 - 1, 2**31, 2**40, 2**53, 2**63, 10**40),
    *(10**5000, -(2**63), 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", ".", "..", "/", "../x", "../../../etc/passwd", "/etc/passwd", "labels", "a" * 5000, "\0"),
    *("http://127.0.0.1:9/x", "reference::http://127.0.0.1:9/x", "file:///etc", "~/x", "\u202e"),
    *("shards/part-000001.parquet", "manifest.json", "\x1b]52;c;eA==\x07", "[/x]", "0" * 64),
    *([], {}, [[]] * 9, {"a": {"b": []}}, [1, 2], "complete", "running", "compact/1", "1.0"),
)


KINDS = (
    *("bytes", "sealed bytes", "sealed shard", "sealed page", "manifest", "identity", "entry"),
    *("index", "lengths", "rows", "facts", "order", "view", "view bytes", "ledger"),
)
IDENTITY = (
    *("vocab_size", "k", "draws", "mode", "max_length", "sampling", "states"),
    *("label_temperatures", "keep_positions", "ids_from"),
)
OWN_KINDS = {"merged": ("batch",) * len(KINDS), "states": ("part", "head") * 6}
SETS = ("plain", "compact", "golden-plain", "golden-compact", "merged", "states", "late")
IN_BATCH = 2
"""Units whose entries become one file, of 256 elsewhere."""


def make_sets() -> None:
    """Write the sets that are mutated: of both codecs, frozen ones with plans, one with a batch."""
    for module in (file_names, journal, journal_batches, set_files):
        module.BATCH = IN_BATCH  # type: ignore[attr-defined]
    folder = Path("sets")
    for name, codec in (("plain", PLAIN_1), ("compact", COMPACT_1), ("merged", PLAIN_1)):
        tables = [[varied_table(8 * s + 4 * g, 3, longest=9) for g in range(2)] for s in range(2)]
        write_set(folder / name, tables, codec)
    journal.compact_journal(folder / "merged", IN_BATCH)
    write_state_set(folder / "states", STATES_2)
    write_late_set(folder / "late")
    for name in ("plain", "compact"):
        shutil.copytree(GOLDEN.parent / f"format-1-{name}-1", folder / f"golden-{name}")
    for name in SETS:
        labels = open_label_set(folder / name)
        view = view_of(labels, lambda n, rows: np.arange(rows) % 2 == n % 2)
        write_view(folder / f"{name}.{VIEW}", view)


def mutate_json(content: Any, rng: random.Random) -> Any:
    """Return a JSON value with one value in it, at any depth, replaced, removed or repeated."""
    if isinstance(content, dict) and content and rng.random() < 0.9:
        key = rng.choice(sorted(content))
        if rng.random() < 0.08:
            return {k: v for k, v in content.items() if k != key}
        return content | {key: mutate_json(content[key], rng)}
    if isinstance(content, list) and content and rng.random() < 0.9:
        at = rng.randrange(len(content))
        choice = rng.random()
        if choice < 0.1:
            return [*content[:at], *content[at + 1 :]]
        if choice < 0.2:
            return [*content, content[at]]
        return [*content[:at], mutate_json(content[at], rng), *content[at + 1 :]]
    if isinstance(content, int) and not isinstance(content, bool) and rng.random() < 0.4:
        return content + rng.choice([-1, 1, 2**16, -(2**31), 2**32])
    return rng.choice(VALUES)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with some changed, cut, repeated or overwritten."""
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        at = rng.randrange(len(changed))
        choice = rng.random()
        if choice < 0.6:
            changed[at] ^= 1 << rng.randrange(8)
        elif choice < 0.75:
            changed[at] = rng.choice([0, 1, 127, 128, 255])
        elif choice < 0.85:
            changed[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0" * 4])
        elif choice < 0.9 and len(changed) > 9:
            del changed[at : at + rng.randrange(1, 9)]
        elif choice < 0.95:
            changed[at:at] = changed[at : at + rng.randrange(1, 64)]
        else:
            changed = changed[: max(1, at)]
    return bytes(changed)


def mutate(path: Path, view: Path, rng: random.Random) -> str:
    """Change a set or its view; return what was changed."""
    shards = sorted((path / "shards").iterdir())
    kind = rng.choice((*KINDS, *OWN_KINDS.get(path.name, ())))
    if kind in ("bytes", "sealed bytes"):
        file = rng.choice(list(files_of(path)))
        file.write_bytes(mutate_bytes(file.read_bytes(), rng))
        if kind == "sealed bytes" and file.name != "manifest.json":
            reseal(path)
        return f"{kind} of {file.name}"
    if kind == "sealed shard":
        shard = rng.choice(shards)
        data = shard.read_bytes()
        length = int.from_bytes(data[-8:-4], "little") + 8
        part = slice(len(data) - length, len(data)) if rng.random() < 0.6 else slice(0, -length)
        changed = mutate_bytes(data[part], rng)
        shard.write_bytes(data[: part.start] + changed + data[part.stop :])
        reseal(path)
    elif kind == "sealed page":
        page = path / "index" / "page-000000.parquet"
        changed = mutate_bytes(page.read_bytes(), rng)
        page.write_bytes(changed)
        content = read_json(path / "manifest.json")
        content["index_pages"][0]["sha256"] = sha256_bytes(changed)
        write_json(path / "manifest.json", content)
    elif kind == "manifest":
        reseal(path, manifest=lambda content: mutate_json(content, rng) or content)
    elif kind == "identity":
        name = rng.choice(IDENTITY)
        reidentify(path, **{name: rng.choice([*VALUES, 4, 300, 2**22, 10**6])})
    elif kind == "entry":
        file = rng.choice(sorted((path / "journal").glob("unit-*.json")))
        write_json(file, mutate_json(read_json(file), rng) or {})
    elif kind == "index":
        rows = pq.read_table(path / "index" / "page-000000.parquet").to_pylist()
        row = rng.choice(rows)
        name = rng.choice(INDEX_SCHEMA.names)
        fits = [v for v in VALUES if isinstance(v, type(row[name])) and v is not True]
        row[name] = rng.choice([v for v in fits if isinstance(v, str) or abs(v) < 2**31])
        write_index_page(path, rows)
        reseal(path)
    elif kind == "lengths":
        rows = pq.read_table(path / "index" / "page-000000.parquet").to_pylist()
        row = rng.choice(rows)
        row["lengths"] = mutate_json(row.get("lengths"), rng)
        write_index_page(path, rows, WITH_LENGTHS)
        reseal(path)
    elif kind == "rows":
        rewrite_rows(path, _row_changes(rng), shard=rng.randrange(len(shards)))
    elif kind == "batch":
        _change_batch(path, rng)
    elif kind == "part":
        reseal_part(path, mutate_bytes((path / hidden_name(0)).read_bytes(), rng))
    elif kind == "head":
        file = rng.choice(sorted((path / "head").iterdir()))
        file.write_bytes(mutate_bytes(file.read_bytes(), rng))
        reseal_head(path, f"head/{file.name}")
    elif kind == "facts":
        refoot(rng.choice(shards), lambda facts: mutate_json(facts, rng) or {})
        reseal(path)
    elif kind == "order":

        def order(facts: dict[str, Any]) -> dict[str, Any]:
            raw = base64.b64decode(facts.get("topk_order", "") or "KLUv/QQAAQAAAAAA")
            return facts | {"topk_order": base64.b64encode(mutate_bytes(raw, rng)).decode()}

        refoot(rng.choice(shards), order)
        reseal(path)
    elif kind == "view":
        write_json(view, mutate_json(read_json(view), rng) or {})
    elif kind == "view bytes":
        view.write_bytes(mutate_bytes(view.read_bytes(), rng))
    else:
        file = path / "ledger.json"
        file.write_text(json.dumps(mutate_json(read_json(file), rng)))
    return kind


def _row_changes(rng: random.Random) -> Callable[[pa.Table], pa.Table]:
    """Return a change of all tables: a column less, one of another type, or other values in it."""
    part, choice = rng.random(), rng.random()
    to = rng.choice([pa.string(), pa.int64(), pa.float64(), pa.list_(pa.int64()), pa.binary()])

    def change(table: pa.Table) -> pa.Table:
        at = int(part * table.num_columns)
        if choice < 0.1:
            return table.remove_column(at)
        field, values = table.field(at), table.column(at).to_pylist()
        if choice < 0.2:
            field, values = pa.field(field.name, to), [None] * len(values)
        else:
            row = rng.randrange(len(values))
            values[row] = mutate_json(values[row], rng)
        if choice < 0.4:
            field = field.with_nullable(True)
        return table.set_column(at, field, pa.array(values, field.type))

    return change


def _change_batch(path: Path, rng: random.Random) -> None:
    """Change the bytes of the batch, or one of the values in it; its hashes are in no file."""
    (file,) = (path / "journal").glob("units-*.parquet")
    if rng.random() < 0.4:
        file.write_bytes(mutate_bytes(file.read_bytes(), rng))
        return
    table = pq.read_table(file)
    rows = table.to_pylist()
    row = rng.choice(rows)
    name = rng.choice(("unit", "entry", "entry", "rejects"))
    if name == "unit":
        row[name] = rng.choice([-1, 0, 1, 2, 2**53, 2**63 - 1])
    elif name == "entry":
        entry = mutate_json(json.loads(row["entry"]), rng)
        write_json(path.parent / "entry", entry or {})
        row[name] = (path.parent / "entry").read_bytes()
    else:
        row[name] = mutate_bytes(row[name], rng)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)


def use(path: Path, readers: Iterable[Callable[[Path], object]] | None = None) -> None:
    """Read a set or view as verify and the trainer do, and by some of `READERS`.

    Args:
        path: the set or view.
        readers: by default, a scan and a repair.
    """
    findings(path)
    trained_on(path)
    for read in readers or (_scan, _repair):
        with contextlib.suppress(SoftshardsError), quiet():
            read(path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what is printed from the terminal."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _scan(path: Path) -> None:
    scan(path).select("id", "n_labels", "topk_ids", "tail_logprob").collect()


def _repair(path: Path) -> None:
    if path.is_dir():
        describe_repair(diagnose(path, None), dry_run=True)


def _inspect(path: Path) -> None:
    run_inspect(InspectConfig(path, allow_partial=True))
    run_inspect(InspectConfig(path, row="first", as_json=True))
    run_inspect(InspectConfig(path, rejects=True))


def _page(path: Path) -> None:
    run_view(ViewConfig(path, out_file=path.parent / "page.html", allow_partial=True))


def _compare(path: Path) -> None:
    run_compare(CompareConfig(path, path))


def _curate(path: Path) -> None:
    out = path.parent / "curated.view.json"
    run_curate(CurateConfig(path, out=out, where=("mean_nll < 9",), max_repetition=0.9))


def _export(path: Path) -> None:
    for form, name in (("distillkit", "a.parquet"), ("trl", "a.jsonl"), ("jsonl", "b.jsonl")):
        file = path.parent / name
        with contextlib.suppress(SoftshardsError):
            run_export(ExportConfig(path, file, format=form, lossy=True, replace=True))


def _convert(path: Path) -> None:
    out = path.parent / "converted"
    shutil.rmtree(out, ignore_errors=True)
    run_convert(ConvertConfig(path, out))


def _plan(path: Path) -> None:
    run_plan_cluster(ClusterConfig(str(path), like=str(path), hours=1.0))


def _lengths(path: Path) -> None:
    labels = open_label_set(path, allow_partial=True)
    lengths = read_lengths(labels.row_groups)
    for number in range(len(labels.row_groups)):
        lengths.of(number)
    plan_groups(labels, ["meta.a", "length"])


def _facts(path: Path) -> None:
    measure_teacher(open_label_set(path, allow_partial=True))


def _states(path: Path) -> None:
    labels = open_label_set(path, allow_partial=True)
    if labels.manifest.states is not None:
        for read in (lambda: labels.head, *(partial(labels.basis, layer) for layer in LAYERS)):
            with contextlib.suppress(SoftshardsError):
                read()
        for group in labels.row_groups:
            labels.read_row_group(group, ["topk_ids", *state_columns(LAYERS)])


READERS = (
    _scan,
    _repair,
    _inspect,
    _page,
    _compare,
    _curate,
    _export,
    _convert,
    _plan,
    _lengths,
    *(_facts, _states),
)


def fuzz_sets(rng: random.Random) -> str:
    """Mutate a set or its view, and read it."""
    name = rng.choice(SETS)
    path, view = Path(name).resolve(), Path(f"{name}.{VIEW}").resolve()
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(Path("../sets") / name, path)
    shutil.copy(Path("../sets") / view.name, view)
    try:
        kind = mutate(path, view, rng)
    except Exception:  # the mutation itself failed: nothing to read
        return "not made"
    readers = [*rng.sample(READERS, 3), *([_states] if name == "states" else [])]
    use(view if kind.startswith("view") else path, readers)
    return kind.partition(" of ")[0]


TARGETS = {"sets": Target(fuzz_sets, make_sets)}
