"""Teachers' folders as they are found: dtype, scaled contexts, odd files, code of their own."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from labeler.labeling.teacher.teacher import Teacher, open_teacher
from schemas import SoftshardsError
from tests.labeler.command_line import CommandLine


@pytest.fixture
def folder(teacher: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(teacher, tmp_path / "teacher"))


def configure(folder: Path, *without: str, **settings: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in without}))


def opened(folder: Path, max_length: int = 8) -> Teacher:
    return open_teacher(folder, max_length=max_length)


GEMMA3 = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "text_config": {"model_type": "gemma3_text", "vocab_size": 320, "num_hidden_layers": 2},
    "vision_config": {"model_type": "siglip_vision_model"},
}


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "float16"}, "float16"),
        ({"torch_dtype": None}, "float32"),  # of the weights
        (GEMMA3 | {"torch_dtype": "bfloat16"}, "bfloat16"),
        (GEMMA3 | {"text_config": {**GEMMA3["text_config"], "dtype": "bfloat16"}}, "bfloat16"),  # type: ignore[dict-item]
        (GEMMA3 | {"text_config": {**GEMMA3["text_config"], "torch_dtype": "float16"}}, "float16"),  # type: ignore[dict-item]
    ],
)
def test_dtype(folder: Path, settings: dict[str, Any], dtype: str) -> None:
    configure(folder, "dtype", "torch_dtype")
    configure(folder, **settings)
    assert opened(folder).dtype == dtype


@pytest.mark.parametrize(
    ("dtypes", "dtype"),
    [
        (["BF16"], "bfloat16"),
        (["F16", "I64"], "float16"),
        (["F32", "BF16"], "float32"),
        (["U8"], "float32"),
    ],
)
def test_dtype_of_weights_where_the_configuration_names_none(
    folder: Path, dtypes: list[str], dtype: str
) -> None:
    configure(folder, "dtype", "torch_dtype")
    header = {f"w{n}": {"dtype": d, "shape": [0], "data_offsets": [0, 0]} for n, d in
              enumerate(dtypes)} | {"__metadata__": {"format": "pt"}}  # fmt: skip
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    assert opened(folder).dtype == dtype


def rope(kind: str, factor: float | None = 4.0, **more: Any) -> dict[str, Any]:
    return {"rope_scaling": {"rope_type": kind, "factor": factor, **more}}


@pytest.mark.parametrize(
    ("settings", "context"),
    [
        ({}, 256),
        (rope("linear"), 1024),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 1024),  # as it was written once
        (rope("linear", 1.5), 384),
        (rope("dynamic"), 1024),
        (rope("dynamic", 2.0), 512),
        (rope("yarn", original_max_position_embeddings=64), 256),
        (
            rope(
                "llama3",
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
            256,
        ),
        (
            rope(
                "longrope",
                long_factor=[1.0] * 16,
                short_factor=[1.0] * 16,
                original_max_position_embeddings=64,
            ),
            256,
        ),
        ({"rope_scaling": None}, 256),
        ({"max_position_embeddings": 8192, **rope("linear")}, 32768),
        ({"max_seq_len": 128}, 128),
        ({"model_max_length": 512}, 512),
    ],
)
def test_context(folder: Path, settings: dict[str, Any], context: int) -> None:
    configure(folder, **settings)
    assert opened(folder, max_length=context).context == context
    with pytest.raises(SoftshardsError, match=f"more than the model's context of {context} tok"):
        opened(folder, max_length=context + 1)


def test_context_of_gemma_3_is_scaled_already(folder: Path) -> None:
    scaled = {"rope_type": "linear", "factor": 8.0}
    text = {**GEMMA3["text_config"], "max_position_embeddings": 512, "rope_scaling": scaled}  # type: ignore[dict-item]
    configure(folder, **(GEMMA3 | {"text_config": text}))
    assert opened(folder).context == 512


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "generation_config.json: the file cannot be read: Expecting"),
        ("", "generation_config.json: the file cannot be read"),
        ("[]", "generation_config.json: the file cannot be read"),
        ("\xff", "generation_config.json: the file cannot be read"),
        ('{"eos_token_id": "</s>"}', 'its eos_token_id is "</s>", neither an id nor a list'),
        ('{"eos_token_id": [0, "1"]}', r"its eos_token_id is \[0, "),
        ('{"eos_token_id": -1}', "its eos_token_id is -1"),
        ('{"eos_token_id": true}', "its eos_token_id is true"),
        ('{"eos_token_id": 1.5}', "its eos_token_id is 1.5"),
    ],
)
def test_a_broken_generation_config_is_one_message(
    folder: Path, content: str, message: str
) -> None:
    (folder / "generation_config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(SoftshardsError, match=message) as caught:
        opened(folder)
    assert "repair it, or remove it" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("content", "stop_ids", "ignored"),
    [
        ('{"eos_token_id": [3, 0]}', (0, 3), ""),
        ('{"eos_token_id": null}', (0,), ""),
        ('{"eos_token_id": [null, 5]}', (0, 5), ""),
        ("{}", (0,), ""),
        ('{"eos_token_id": 2, "temperature": -3, "penalty_alpha": "x"}', (0, 2), ""),
        ('{"eos_token_id": [0, 300, 151643]}', (0,), "300, 151643"),
    ],
)
def test_stop_ids(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    content: str,
    stop_ids: tuple[int, ...],
    ignored: str,
) -> None:
    (folder / "generation_config.json").write_text(content)
    found = opened(folder)
    assert found.stop_ids == stop_ids
    assert all(isinstance(token, str) for token in found.stop_tokens)
    message = capsys.readouterr().err
    assert (f"stop ids beyond the tokenizer's 300 ids are ignored: {ignored}" in message) == bool(
        ignored
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("added_tokens.json", "{"),
        ("tokenizer.json", "{"),
        ("tokenizer.json", '{"version": "1.0", "added_tokens": [{"id": -1}]}'),
        ("tokenizer_config.json", "["),
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", '{"model_type": "llama", "dtype": "bfloat61"}'),
        ("config.json", '{"model_type": "no such"}'),
        ("config.json", "\0"),
    ],
)
def test_broken_files_are_one_message(folder: Path, name: str, content: str) -> None:
    if name == "added_tokens.json":  # read only beside the files of a slow tokenizer
        (folder / "tokenizer.json").unlink()
    (folder / name).write_text(content)
    with pytest.raises(SoftshardsError, match="the model cannot be opened") as caught:
        opened(folder)
    assert caught.value.hint


CODE = """
from transformers import {parent}

class Own({parent}):
    model_type = "own_code"
"""


def give_code(folder: Path) -> None:
    configure(folder, model_type="own_code", auto_map={"AutoConfig": "configuration_own.Own"})
    (folder / "configuration_own.py").write_text(CODE.format(parent="LlamaConfig"))


def test_code_of_its_own_is_never_a_question(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_code(folder)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question"))
    with pytest.raises(SoftshardsError, match=r"code of its own \(config.json") as caught:
        opened(folder)
    assert "--engine-arg.trust-remote-code true" in str(caught.value.hint)


def test_code_of_its_own_runs_where_it_is_allowed(
    folder: Path, labeler: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_code(folder)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    (tmp_path / "a.jsonl").write_text('{"text":"the first row"}')
    flags = ("--model", folder, "--out", tmp_path / "out", "--max-length", 64, "--dry-run")
    for trusted in ((), ("--engine-arg.trust-remote-code", "false")):
        refused = labeler("label", tmp_path / "a.jsonl", *flags, *trusted)
        assert refused.code == 2
        assert "needs code of its own" in refused.err
    trusted = ("--engine-arg.trust-remote-code", "true")
    assert labeler("label", tmp_path / "a.jsonl", *flags, *trusted, "--json").json["rows"] == 1
    odd = labeler("label", tmp_path / "a.jsonl", *flags, "--engine-arg.trust-remote-code", "maybe")
    assert odd.code == 2
    assert "is maybe; it is true or false" in odd.err


def test_code_that_transformers_does_not_need_is_left_alone(folder: Path) -> None:
    configure(folder, auto_map={"AutoConfig": "configuration_gone.Own"})
    assert opened(folder).dtype == "float32"


def test_a_tokenizer_with_code_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "tokenizer_config.json"
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {
        "AutoTokenizer": ["tokenization_own.Own", None]}}  # fmt: skip
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    (folder / "tokenization_own.py").write_text(CODE.format(parent="PreTrainedTokenizer"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question"))
    try:
        assert opened(folder).vocab_size == 300  # transformers reads tokenizer.json without it
    except SoftshardsError as error:
        assert "tokenizer_config.json" in str(error)  # noqa: PT017


@pytest.mark.slow
def test_the_dry_run_shows_dtype_and_context(
    folder: Path, labeler: CommandLine, tmp_path: Path
) -> None:
    configure(folder, "dtype", torch_dtype="bfloat16", **rope("linear"))
    (tmp_path / "a.jsonl").write_text('{"text":"the first row"}')
    flags = ("--model", folder, "--out", tmp_path / "out", "--max-length", 1024, "--dry-run")
    plain = labeler("label", tmp_path / "a.jsonl", *flags)
    assert "teacher       bfloat16, context 1024 tokens\n" in plain.out
    facts = labeler("label", tmp_path / "a.jsonl", *flags, "--dtype", "float32", "--json").json
    assert (facts["dtype"], facts["context"]) == ("float32", 1024)
