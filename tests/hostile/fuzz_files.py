"""Fuzzers of the other files that a stranger may send: one value or some bytes of one are changed.

Settings, results, verdicts, model folders, descriptions of datasets, leases, hidden states
and the answers of a server of models.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from cyclopts import App, Parameter

from labeler.labeling.engines.capture import CaptureError
from labeler.labeling.engines.served.responses import (
    TokenTexts,
    check_answer,
    generated_by_id,
    generated_by_text,
    scored_by_id,
    scored_by_text,
)
from labeler.labeling.engines.served.server_checks import check_raw, check_scores
from labeler.labeling.inputs.find_inputs import find_inputs
from labeler.labeling.planning.engine_memory import checkpoint_size
from labeler.labeling.planning.plan_cluster import size_of
from labeler.labeling.runs.label_command import LabelCommand
from labeler.labeling.teacher.teacher import open_teacher
from labeler.labeling.teacher.teacher_config import generation_stop_ids, own_code
from labeler.labeling.writing import leases
from labeler.labelsets.curate.curate_config import CurateConfig
from schemas import SoftshardsError
from schemas.bench_results import read_bench_results
from schemas.fingerprint import tokenizer_digest, weights_digest
from schemas.flags_file import run_with_flags
from schemas.hub_files import weight_files
from schemas.journal import UnitEntry
from schemas.json_values import parse_json
from schemas.parquet_sizes import checked_parquet
from schemas.prices import read_prices
from schemas.state_codec import (
    StateBasis,
    decode_states,
    encode_states,
    label_offsets,
    state_fields,
    states_writer,
)
from schemas.verdicts import read_verdicts
from schemas.version import STATES_1, STATES_2
from tests.hostile.fuzz import Target
from tests.hostile.fuzz_inputs import teacher
from tests.hostile.fuzz_sets import mutate_json, quiet
from tests.hostile.mutating import mutated
from tests.labeler.hf_dataset import save_dataset_dict
from tests.schemas.sets import GOLDEN
from tests.schemas.test_bench_results import FIRST
from tests.trainer.report.reported import Reported
from trainer.audit.canary_file import read_canaries
from trainer.evaluate.tasks.task_files import read_task
from trainer.evaluate.token_bytes import token_bytes
from trainer.export.provenance import read_license
from trainer.report.build_report import report
from trainer.rounds.rounds_file import read_rounds
from trainer.run_files import read_lines, truncate_log
from trainer.select.select_file import read_select
from trainer.student.load_model import stored_dtype
from trainer.sweep.grid import read_sweep
from trainer.train.train_config import TrainConfig

LABELS = 3
STATE_WIDTH = 4
TEXT = "a cat sat"


@dataclass(frozen=True)
class Parser:
    """A reader of one file.

    Attributes:
        file: the file's name.
        content: good content: bytes, or a value that is written as YAML or JSON.
        read: reads the file.
    """

    file: str
    content: object
    read: Callable[[Path], object]


def _flags(command: Callable[..., int], name: str) -> Callable[[Path], object]:
    app = App(default_parameter=Parameter(negative_iterable=()))
    app.command(command, name=name)

    def read(path: Path) -> None:
        with quiet(), contextlib.suppress(SystemExit):  # a message, and exit code 1
            run_with_flags(app, [name], path)

    return read


def _label(config: LabelCommand) -> int:
    return int(config is None)


def _train(config: TrainConfig) -> int:
    return int(config is None)


def _curate(config: CurateConfig) -> int:
    return int(config is None)


def _read_lease(path: Path) -> None:
    holder = leases._parse(path.read_bytes())
    leases._is_alive(holder)
    leases._describe(holder)


def _read_entry(path: Path) -> None:
    with contextlib.suppress(ValueError):  # as the object store's writer does
        UnitEntry.model_validate_json(path.read_bytes())


def _read_log(path: Path) -> None:
    read_lines(path)
    truncate_log(path, 2)


def _read_index(path: Path) -> None:
    weight_files([path.name, "model.safetensors"], lambda _: path.read_bytes())


def _read_states(basis: StateBasis | None, path: Path) -> None:
    with contextlib.suppress(ValueError, pa.ArrowException, OSError):
        with checked_parquet(path) as file:
            table = file.read()
        for column in table.columns:
            for chunk in column.chunks:
                chunk.validate(full=True)
        if table.schema.remove_metadata().equals(
            pa.schema(state_fields(STATE_WIDTH, STATES_1 if basis is None else STATES_2))
        ):
            decode_states(table, basis)
            label_offsets(table)


def _read_answer(path: Path) -> None:
    try:
        answer = parse_json(path.read_bytes())  # as the client library has parsed it
    except ValueError:
        return
    texts = TEXT.split(" ")
    known = TokenTexts(texts=texts, ids={text: i for i, text in enumerate(texts)})
    calls: tuple[Callable[[], object], ...] = (
        lambda: check_scores(scored_by_id(answer, [0, 1, 2], [1, 2], 2), "float32", None),
        lambda: generated_by_id(answer, 2),
        lambda: scored_by_text(answer, [0, 1, 2], [1, 2], 2, known),
        lambda: generated_by_text(answer, 2, known, teacher().tokenizer),
        lambda: check_raw(*[answer["logprobs"]["top_logprobs"][0]] * 2, None),
    )
    for call in calls:
        with contextlib.suppress(CaptureError, SoftshardsError), check_answer():
            call()


def _states(basis: StateBasis | None) -> bytes:
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((n, STATE_WIDTH)).astype(np.float32) * 99 for n in (3, 0, 2)]
    path = Path("states.parquet")
    schema = pa.schema(state_fields(STATE_WIDTH, STATES_1 if basis is None else STATES_2))
    with states_writer(path, schema) as writer:
        writer.write_table(pa.table(encode_states(rows, STATE_WIDTH, basis), schema=schema))
    return path.read_bytes()


def _basis() -> StateBasis:
    one = np.eye(STATE_WIDTH, dtype=np.float32)
    return StateBasis(mean=one[0], analysis=one, synthesis=one, step=1.0)


@functools.cache
def parsers() -> Mapping[str, Parser]:
    top = {"0": {"logprob": -1.0}, "1": {"logprob": -1.1}}
    tops = [{"token_id:0": -1.0, "token_id:1": -1.1, "a": -1.0, "cat": -1.2}] * LABELS
    answer = {
        "prompt_token_ids": [0, 1, 2],
        "token_ids": [0, 1, 0],
        "prompt_logprobs": [None, top, {**top, "2": {"logprob": -9.0}}],
        "logprobs": {
            "tokens": TEXT.split(" "),
            "token_logprobs": [None, -1.0, -2.0],
            "top_logprobs": tops,
        },
    }
    canary = {"before": "a ", "digits": "12", "after": ".", "canary": 0, "id": "c"}
    holder = json.loads(leases._this_process().model_dump_json())
    verdicts = [{"verdicts_on": "0" * 64, "by": "x"}, {"id": "a", "passed": True, "number": 0.5}]
    log = [{"step": i, "tokens": 9 * i, "kl": 1 / (i + 1)} for i in range(4)]
    entry = (GOLDEN / "journal" / "unit-000000.json").read_bytes()
    sweep = {
        "base": {"labels": "l", "eval_labels": "h", "lr": 1e-4},
        "slices": {"small": {"teacher": "t", "keep": 2}},
        "grid": {"student": {"a": "small", "b": "m"}, "seed": [0, 1], "loss": [["ce=1"]]},
        "runs": [{"name": "x", "student": "s", "lr": "1e-3"}],
    }
    task = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "items.jsonl"}},
        "output_type": "multiple_choice",
        "metric_list": [{"metric": "acc"}],
    }
    label = {"inputs": ["a.jsonl"], "model": "m", "out": "o", "k": 8, "engine_arg": {"a": 1}}
    train = {"labels": "l", "student": "s", "out": "o", "lr": 1e-4, "loss": ["ce=1"]}
    curate = {"labels": "l", "out": "o.view.json", "where": ["mean_nll < 4"], "best_of": 1}
    rounds = {
        "teacher": "t", "student": "s", "prompts": "p.jsonl", "rounds": 2, "mix": {"l": 0.5},
        "generate": {"max_tokens": 9}, "score": {"k": 8}, "train": {"lr": 1e-4},
    }  # fmt: skip
    select = {
        "base": {"lr": 1e-4, "pack_tokens": 64},
        "teachers": {"tiny": {"labels": {"text": "a"}, "probe": "p"}},
        "slices": {"half": {"teacher": "t", "keep": 2}},
        "grid": {"student": ["half", "m"], "seed": [0, 1]},
        "budget": {"steps": 9},
    }
    prices = {"currency": "EUR", "devices": {"cpu": {"per_hour": 0.4}}, "labeling": "cpu"}
    found = (
        Parser("prices.yaml", prices, read_prices),
        Parser("students.yaml", sweep, lambda path: read_sweep(path, Path("sweep"))),
        Parser("rounds.yaml", rounds, read_rounds),
        Parser("select.yaml", select, lambda path: read_select(path, Path("selected"))),
        Parser("task.yaml", task, lambda path: read_task(path, allow_code=False)),
        Parser("label.yaml", label, _flags(_label, "label")),
        Parser("train.yaml", train, _flags(_train, "train")),
        Parser("curate.yaml", curate, _flags(_curate, "curate")),
        Parser("bench.json", FIRST, read_bench_results),
        Parser("dry-run.json", {"tokens": 9, "labels": 3}, lambda path: size_of(str(path))),
        Parser("verdicts.jsonl", verdicts, read_verdicts),
        Parser("canaries.jsonl", [canary | {"text": "a 12."}], read_canaries),
        Parser("log.jsonl", log, _read_log),
        Parser("lease.json", holder, _read_lease),
        Parser("entry.json", entry, _read_entry),
        Parser("model.safetensors.index.json", {"weight_map": {"a": "b"}}, _read_index),
        Parser("states-1.parquet", _states(None), functools.partial(_read_states, None)),
        Parser("states-2.parquet", _states(_basis()), functools.partial(_read_states, _basis())),
        Parser("answer.json", answer, _read_answer),
    )
    return {parser.file: parser for parser in found}


def _as_bytes(name: str, content: object) -> bytes:
    if isinstance(content, bytes):
        return content
    if name.endswith(".yaml"):
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode()
    if name.endswith(".jsonl") and isinstance(content, list):
        return "".join(json.dumps(row) + "\n" for row in content).encode()
    return json.dumps(content).encode()


def _changed(name: str, content: object, rng: Random) -> bytes:
    """Return good content with a value or some bytes changed."""
    if not isinstance(content, bytes) and rng.random() < 0.7:
        changed = content
        for _ in range(rng.choice((1, 1, 2))):
            changed = mutate_json(changed, rng)
        with contextlib.suppress(ValueError):  # a number too long to be written
            return _as_bytes(name, changed)
    return mutated(_as_bytes(name, content), rng)


def fuzz_files(rng: Random) -> str:
    """Change one of the files of `parsers`, and read it."""
    parser = parsers()[rng.choice(sorted(parsers()))]
    path = Path(parser.file)
    with contextlib.suppress(UnicodeEncodeError):
        path.write_bytes(_changed(parser.file, parser.content, rng))
        try:
            parser.read(path)
        except SoftshardsError:
            return f"{parser.file}: refused"
        return f"{parser.file}: read"
    return "not made"


MODEL_FILES = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"),
    *("model.safetensors", "README.md", "tokenizer.json", "chat_template.jinja"),
)


def make_model_folder() -> None:
    """Make a teacher with a card, and a dataset."""
    folder = teacher().path
    card = {"license": "other", "license_name": "mine", "license_link": "https://h/x"}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n# model\n")
    save_dataset_dict(Path("dataset"), {"train": [{"text": "x"}], "test": [{"text": "y"}]})


def fuzz_models(rng: Random) -> str:
    """Change a file of a model's folder, or of a dataset on disk, and read it in every way."""
    shared = teacher().path
    if rng.random() < 0.2:
        return _dataset(shared.parent / "dataset", rng)
    folder = Path("model").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(shared, folder)
    name = rng.choice(MODEL_FILES)
    path = folder / name
    if not path.exists():
        return "not made"
    data = path.read_bytes()
    with contextlib.suppress(UnicodeEncodeError):
        content = json.loads(data) if name.endswith(".json") else data
        path.write_bytes(_changed(name, content, rng))
        for read in _model_readers(folder):
            with contextlib.suppress(SoftshardsError), quiet():
                read()
        return name
    return "not made"


def _model_readers(folder: Path) -> tuple[Callable[[], object], ...]:
    def digest() -> None:
        with contextlib.suppress(ValueError, FileNotFoundError):  # as documented
            tokenizer_digest(folder)

    return (
        lambda: own_code(folder),
        lambda: generation_stop_ids(folder),
        digest,
        lambda: weights_digest(folder, full=False),
        lambda: checkpoint_size(folder, "float32"),
        lambda: stored_dtype(folder),
        lambda: token_bytes(folder, 300),
        lambda: read_license(folder),
        lambda: open_teacher(folder, max_length=64),
    )


def _dataset(shared: Path, rng: Random) -> str:
    folder = Path("dataset").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(shared, folder)
    name = rng.choice(("dataset_dict.json", "train/state.json"))
    path = folder / name
    with contextlib.suppress(UnicodeEncodeError):
        path.write_bytes(_changed(name, json.loads(path.read_bytes()), rng))
        find_inputs([str(folder)])
        return name
    return "not made"


def make_report() -> None:
    """Write what a report reads."""
    made = Reported(Path("report").resolve())
    made.root.mkdir()
    made.add("kd", ce=2.5)
    made.add("ce", ce=2.7, loss=("ce=1",))
    made.add("start", ce=3.0, loss=None)
    _REPORTED.append(made)
    made.config()


_REPORTED: list[Reported] = []


def fuzz_reports(rng: Random) -> str:
    """Change a file that a report reads, and write the report."""
    made = _REPORTED[0]
    config = made.config()  # the good files again
    files = sorted(path for path in made.root.rglob("*.json*") if path.name != "report.json")
    path = rng.choice(files)
    data = path.read_bytes()
    lines = path.suffix == ".jsonl"
    content: Any = [json.loads(line) for line in data.splitlines()] if lines else json.loads(data)
    try:
        path.write_bytes(_changed(path.name, content, rng))
        with quiet(), contextlib.redirect_stdout(io.StringIO()):
            report(config)
    except UnicodeEncodeError:
        return "not made"
    finally:
        path.write_bytes(data)
    return path.name


TARGETS = {
    "files": Target(fuzz_files, lambda: (teacher(), parsers())),
    "models": Target(fuzz_models, make_model_folder),
    "reports": Target(fuzz_reports, make_report),
}
