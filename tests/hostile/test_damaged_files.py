"""Files that the fuzzers found: each is refused by name, in one error without a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from labeler.labeling.inputs.find_inputs import find_inputs
from labeler.labeling.planning.engine_memory import checkpoint_size
from schemas import SoftshardsError
from schemas.hub_files import weight_files
from schemas.journal import read_rejects
from tests.hostile.sealed import rewrite_rows
from tests.labeler.command_line import CommandLine
from tests.labeler.hf_dataset import save_dataset, save_dataset_dict
from tests.schemas.sets import GOLDEN, varied_set
from trainer.evaluate.tasks.task_files import read_task
from trainer.evaluate.token_bytes import token_bytes
from trainer.run_files import read_lines
from trainer.student.load_model import stored_dtype

NOT_AN_OBJECT = (b"", b"[]", b"{", b"\xff", b"[" * 100_000, b"9" * 5000)
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    "content",
    [*NOT_AN_OBJECT, b"{}", b'{"weight_map": 1}', b'{"weight_map": {"a": [1]}}'],
    ids=range(9),
)
def test_an_index_of_weights_that_is_none(content: bytes) -> None:
    with pytest.raises(SoftshardsError, match="index of weights"):
        weight_files([INDEX], lambda _: content)


@pytest.mark.parametrize("content", NOT_AN_OBJECT, ids=range(6))
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.json", stored_dtype),
        ("tokenizer.json", lambda folder: token_bytes(folder, 9)),
        ("model.safetensors", lambda folder: checkpoint_size(folder, "float32")),
        ("model.safetensors", stored_dtype),
    ],
    ids=range(4),
)
def test_a_file_of_a_model_that_is_none(
    name: str, read: Callable[[Path], object], content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SoftshardsError, match=name):
        read(tmp_path)


@pytest.mark.parametrize(
    "name", ["../a.arrow", "/etc/passwd", "b/a.arrow", "..", "", 5, None, {}, "a\0", "..\\a"]
)
def test_a_dataset_names_files_beside_it_only(name: object, tmp_path: Path) -> None:
    save_dataset(tmp_path / "one", [{"text": "x"}])
    save_dataset_dict(tmp_path / "two", {"train": [{"text": "x"}]})
    assert find_inputs([str(tmp_path / "one")])
    assert find_inputs([str(tmp_path / "two")])
    state = {"_data_files": [{"filename": name}]}
    (tmp_path / "one" / "state.json").write_text(json.dumps(state))
    (tmp_path / "two" / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
    for folder in ("one", "two"):
        with pytest.raises(SoftshardsError, match=r"state.json|dataset_dict.json"):
            find_inputs([str(tmp_path / folder)])


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "x/**", ""], ids=range(4))
def test_a_task_names_data_that_no_file_can_be(name: str, tmp_path: Path) -> None:
    task = {"task": "t", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": name}}}
    (tmp_path / "t.yaml").write_text(json.dumps(task))
    with pytest.raises(SoftshardsError, match="data_files"):
        read_task(tmp_path / "t.yaml", allow_code=False)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 99], ids=range(3))
def test_rejects_that_are_none(content: bytes, tmp_path: Path, labeler: CommandLine) -> None:
    path = shutil.copytree(GOLDEN, tmp_path / "labels")
    for file in (path / "journal").glob("unit-*.rejects.parquet"):
        file.write_bytes(content)
    with pytest.raises(SoftshardsError, match=r"rejects\.parquet"):
        read_rejects(path)
    done = labeler("inspect", path, "--rejects")
    assert done.code == 2
    assert "Traceback" not in done.err


def fewer(table: pa.Table) -> pa.Table:
    """Return rows with a label less in one column."""
    at = table.column_names.index("token_logprob")
    values = [row[:-1] for row in table["token_logprob"].to_pylist()]
    return table.set_column(at, table.field(at), pa.array(values, table.field(at).type))


def above_zero(table: pa.Table) -> pa.Table:
    """Return rows, the last of which has a probability above 1."""
    at = table.column_names.index("topk_logprobs")
    values = table["topk_logprobs"].to_pylist()
    values[-1][0][0] = 1.0
    return table.set_column(at, table.field(at), pa.array(values, table.field(at).type))


@pytest.mark.parametrize("change", [fewer, above_zero])
def test_rows_that_contradict_themselves(
    change: Callable[[pa.Table], pa.Table], tmp_path: Path, labeler: CommandLine
) -> None:
    path = varied_set(tmp_path / "labels", "plain/1")
    rewrite_rows(path, change)
    commands = [
        ["convert", path, tmp_path / "out"],
        ["view", path, "--out", tmp_path / "page.html"],
        ["inspect", path, "--row", "row/0"],
        ["compare", path, path],
        ["export", path, tmp_path / "a.parquet", "--format", "distillkit", "--lossy"],
    ]
    done = [labeler(*command) for command in commands]
    assert done[0].code == 2
    assert {each.code for each in done} <= {0, 1, 2}
    assert not any("Traceback" in each.err for each in done)


@pytest.mark.parametrize("line", ['"text"', "[1]", "7", "null", "{}", '{"step": {"a": 1}}', "{"])
def test_a_log_ends_at_a_line_that_is_no_record(line: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"step": 1, "kl": 2.0}}\n{line}\n{{"step": 2, "kl": 1.0}}\n')
    assert read_lines(path) == [{"step": 1, "kl": 2.0}]
