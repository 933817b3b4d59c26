"""Students as files for other runtimes: values, provenance, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    MistralConfig,
    MistralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from schemas import SoftshardsError, open_label_set
from schemas.cache_folder import CACHE
from tests.tiny_model import make_model
from tests.trainer.build_label_set import build_label_set, random_rows
from tests.trainer.conftest import World
from tests.trainer.running import config as train_config
from tests.trainer.student.families import save_family
from trainer.export.export_config import ExportConfig
from trainer.export.export_record import ExportRecord
from trainer.export.export_student import export
from trainer.export.gguf_file import finish_gguf
from trainer.export.held_out_rows import Answers, HeldOutRow, quality
from trainer.export.llama_converter import add_earlier_names, find_converter
from trainer.export.llama_cpp import run_llama_cpp
from trainer.export.provenance import Provenance, read_provenance
from trainer.export.same_function import TOKENS, check_same_function, probe
from trainer.export.speed_load import speed_load
from trainer.student.load_model import load_model
from trainer.student.save_model import copy_files
from trainer.train.loop import train

ROOT = Path(__file__).parents[3]
TEACHER = ROOT / ".cache" / "smollm2-135m-instruct"
ORIGIN = Provenance(name="kd", student_weights="abc", teacher="Größe/7B", license="apache-2.0")


def run(model: Path, out: Path, to: Any = "int8", **more: Any) -> ExportRecord:
    assert export(model, ExportConfig(to=to, out=out, **more)) == 0
    return ExportRecord.open(out)


def test_int8_is_the_students_function(world: World, tmp_path: Path) -> None:
    """transformers reads the checkpoint: each weight is off by half a step at most."""
    record = run(world.teacher, tmp_path / "int8")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "int8", dtype=torch.float32)
    student = AutoModelForCausalLM.from_pretrained(world.teacher, dtype=torch.float32)
    stored = load_file(tmp_path / "int8" / "model.safetensors")
    for name, weight in student.state_dict().items():
        if name not in stored or "proj" not in name:
            continue
        scale = stored[f"{name}_scale"]
        assert (stored[name].dtype, scale.dtype) == (torch.int8, torch.float32)
        assert scale.shape == (len(weight), 1)
        found = stored[name].float() * scale
        assert ((found - weight).abs() <= scale / 2 + 1e-6).all()
    assert "model.layers.0.mlp.up_proj.weight" in stored
    ids = torch.arange(1, 40)[None]
    with torch.no_grad():
        gap = exported(ids).logits.log_softmax(-1) - student(ids).logits.log_softmax(-1)
    assert 0 < gap.abs().max() < 0.2
    assert record.bytes == (tmp_path / "int8" / "model.safetensors").stat().st_size
    assert record.bytes < record.student_bytes / 2
    assert record.measured is None
    config = json.loads((tmp_path / "int8" / "config.json").read_text())
    assert config["softshards"]["student_weights"] == record.weights
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"


def test_an_export_is_reused_and_never_replaced(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "int8"
    run(world.student, out)
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert export(world.student, ExportConfig(to="int8", out=out, json=True)) == 0
    output = capsys.readouterr()
    assert "reused" in output.err
    assert json.loads(output.out) == json.loads((out / "export.json").read_text())
    assert (out / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(SoftshardsError, match="another student or format"):
        run(world.teacher, out)
    with pytest.raises(SoftshardsError, match="another student or format"):
        run(world.student, out, "gguf:f16")
    record = (out / "export.json").read_text()
    (out / "export.json").write_text(record.replace('"version": 1', '"version": 2'))
    with pytest.raises(SoftshardsError, match="export is of version 2, this softshards writes 1"):
        run(world.student, out)
    (out / "export.json").write_text(record)
    with (out / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(SoftshardsError, match="the file was altered"):
        run(world.student, out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(SoftshardsError, match=r"not empty and holds no export\.json"):
        run(world.student, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(SoftshardsError, match="--out is a file"):
        run(world.student, tmp_path / "file")
    with pytest.raises(SoftshardsError, match="--sample-labels is 0"):
        ExportConfig(to="int8", out=out, sample_labels=0)


def broken(world: World, path: Path, **tensors: torch.Tensor) -> Path:
    """Copy the student with other tensors."""
    shutil.copytree(world.student, path)
    weights = load_file(path / "model.safetensors") | tensors
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return path


@pytest.mark.parametrize("to", ["int8", "gguf:f16"])
def test_broken_students_are_refused_and_nothing_is_left(
    world: World, tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "llama.cpp"
    checkout.mkdir()
    (checkout / "convert_hf_to_gguf.py").write_text("raise SystemExit('never started')")
    monkeypatch.setenv("LLAMA_CPP", str(checkout))
    out = tmp_path / "exports" / "out"
    name = "model.layers.0.mlp.up_proj.weight"
    nan = broken(world, tmp_path / "nan", **{name: torch.full((128, 64), torch.nan)})
    with pytest.raises(SoftshardsError, match=f"the weight {name} is not finite"):
        run(nan, out, to)
    shape = broken(world, tmp_path / "shape", **{name: torch.zeros(127, 64)})
    with pytest.raises(SoftshardsError, match="weights have other shapes"):
        run(shape, out, to)
    cut = broken(world, tmp_path / "cut")
    data = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(SoftshardsError, match="the model cannot be loaded"):
        run(cut, out, to)
    (cut / "model.safetensors").unlink()
    with pytest.raises(SoftshardsError, match="cannot be loaded"):
        run(cut, out, to)
    with pytest.raises(SoftshardsError, match=r"no model here: config\.json is missing"):
        run(tmp_path / "nowhere", out, to)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(SoftshardsError, match="LoRA adapters alone"):
        run(tmp_path / "adapter", out, to)
    (tmp_path / "run").mkdir()
    shutil.copytree(world.student, tmp_path / "run" / "final")
    with pytest.raises(SoftshardsError, match="a run, not a model"):
        run(tmp_path / "run", out, to)
    assert not out.parent.exists() or not any(out.parent.iterdir())


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_missing_runtime_is_named_first(world: World, tmp_path: Path) -> None:
    with pytest.raises(SoftshardsError, match="int8 checkpoint in vLLM, which is not installed"):
        run(world.student, tmp_path / "out", labels=world.labels)
    assert not any(tmp_path.iterdir())


def test_matrices_outside_linear_layers_are_refused_in_int8(tmp_path: Path) -> None:
    settings = {"vocab_size": 300, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(**settings)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(SoftshardsError, match=r"h\.0\.attn\.c_attn\.weight is in none"):
        run(tmp_path / "gpt2", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["gpt2"]


@pytest.mark.parametrize("family", ["phi3", "cohere2", "gpt_oss", "mamba"])
def test_families_in_int8_are_the_same_function_or_refused(
    world: World, tmp_path: Path, family: str
) -> None:
    student = save_family(
        family, world.student, tmp_path / "student", vocab_size=world.vocab_size + 20
    )
    out = tmp_path / "out"
    if family in ("gpt_oss", "mamba"):  # experts in one tensor; a convolution
        with pytest.raises(SoftshardsError, match=r"in none: .* cannot be exported in int8"):
            run(student, out)
        assert not out.exists()
        return
    run(student, out)
    ids = torch.arange(1, 60)[None]
    with torch.no_grad():
        own, exported = (
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(ids)
            .logits[0, :-1]
            .log_softmax(-1)
            .gather(1, ids[0, 1:, None])
            for path in (student, out)
        )
    assert 0 < (own - exported).abs().mean() < 0.05


def write_gguf(path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_file_type(1)
    writer.add_array("tokenizer.ggml.tokens", ["a", "ü", "\n"])
    writer.add_float32("llama.rope.freq_base", 1e4)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_four_bits_and_provenance(tmp_path: Path) -> None:
    """A block of 32 weights has 15 steps of an eighth of its largest; tables have 8 bits."""
    rng = np.random.default_rng(0)
    tensors = {
        "token_embd.weight": rng.normal(size=(10, 64)).astype(np.float16),
        "blk.0.ffn_up.weight": rng.normal(size=(8, 64)).astype(np.float16),
        "blk.0.odd.weight": rng.normal(size=(8, 33)).astype(np.float16),
        "blk.0.attn_norm.weight": rng.normal(size=64).astype(np.float32),
    }
    source = write_gguf(tmp_path / "f16.gguf", tensors)
    finish_gguf(source, tmp_path / "q4.gguf", ORIGIN, "q4_0")
    reader = GGUFReader(tmp_path / "q4.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert {name: tensor.tensor_type.name for name, tensor in found.items()} == {
        "token_embd.weight": "Q8_0",
        "blk.0.ffn_up.weight": "Q4_0",
        "blk.0.odd.weight": "F16",
        "blk.0.attn_norm.weight": "F32",
    }
    up = dequantize(found["blk.0.ffn_up.weight"].data, GGMLQuantizationType.Q4_0)
    expected = tensors["blk.0.ffn_up.weight"].astype(np.float32)
    largest = np.abs(expected).reshape(-1, 32).max(1).repeat(32).reshape(8, 64)
    assert (np.abs(up - expected) <= largest / 8 + 1e-3).all()
    assert np.abs(up - expected).max() > 0.01
    np.testing.assert_array_equal(found["blk.0.odd.weight"].data, tensors["blk.0.odd.weight"])
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.file_type"] == 2
    assert fields["tokenizer.ggml.tokens"] == ["a", "ü", "\n"]
    assert fields["softshards.teacher"] == "Größe/7B"
    assert fields["general.license"] == "apache-2.0"
    assert "softshards.label_set" not in fields


def test_eight_bits(tmp_path: Path) -> None:
    """A block of 32 weights has 255 steps, the largest at 127; their size is a float16."""
    weight = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float16)
    tensors = {"token_embd.weight": weight, "blk.0.odd.weight": weight[:, :33].copy()}
    source = write_gguf(tmp_path / "f16.gguf", tensors)
    finish_gguf(source, tmp_path / "q8.gguf", ORIGIN, "q8_0")
    reader = GGUFReader(tmp_path / "q8.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert {name: tensor.tensor_type.name for name, tensor in found.items()} == {
        "token_embd.weight": "Q8_0",
        "blk.0.odd.weight": "F16",
    }
    table = dequantize(found["token_embd.weight"].data, GGMLQuantizationType.Q8_0)
    expected = weight.astype(np.float32)
    step = np.abs(expected).reshape(-1, 32).max(1).repeat(32).reshape(8, 64) / 127
    assert (np.abs(table - expected) <= step * (0.5 + 127 / 2**11)).all()
    assert np.abs(table - expected).max() > 0
    assert reader.fields["general.file_type"].contents() == 7


def test_weights_past_float16_are_refused(tmp_path: Path) -> None:
    weight = np.full((2, 32), np.inf, np.float16)
    source = write_gguf(tmp_path / "f16.gguf", {"blk.0.ffn_up.weight": weight})
    with pytest.raises(SoftshardsError, match=r"blk\.0\.ffn_up\.weight has values that float16"):
        finish_gguf(source, tmp_path / "q4.gguf", ORIGIN, "f16")


def test_provenance_of_a_run(world: World, tmp_path: Path) -> None:
    assert train(train_config(world, tmp_path / "kd", epochs=1)) == 0
    final = tmp_path / "kd" / "final"
    (final / "README.md").write_text("---\nlicense: mit\n---\n# Student\n")
    found = read_provenance(final, "w")
    labels = open_label_set(world.labels)
    assert found == Provenance(
        name="kd",
        student_weights="w",
        teacher=str(world.teacher),
        teacher_weights=labels.manifest.identity.weights,
        label_set=labels.content_digest,
        license="mit",
    )
    assert read_provenance(world.student, "w") == Provenance(name="student", student_weights="w")
    (final / "config.json").write_text("{}")
    with pytest.raises(SoftshardsError, match="the file was altered"):
        read_provenance(final, "w")


def test_quality_is_counted_over_labels() -> None:
    rows = [
        HeldOutRow(tokens=[5, 6, 7], positions=[1, 2], teacher_top=[6, 3]),
        HeldOutRow(tokens=[1, 2], positions=[1], teacher_top=[2]),
    ]
    found = quality(rows, [Answers([-1.0, -2.0], [6, 4]), Answers([-3.0], [2])])
    assert (found.labels, found.ce, found.agreement) == (3, 2.0, 2 / 3)
    assert found.ppl == pytest.approx(np.exp(2))


def test_a_file_that_is_another_function_is_refused(world: World) -> None:
    probed = probe(load_model(world.student))
    tokens, values = probed.row.tokens, probed.logprobs
    model = AutoModelForCausalLM.from_pretrained(world.student, dtype=torch.float64)
    with torch.no_grad():
        dense = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    expected = [float(dense[at - 1, tokens[at]]) for at in probed.row.positions]
    assert len(tokens) == TOKENS
    np.testing.assert_allclose(values, expected, atol=1e-4)
    noise = 0.01 * np.random.default_rng(0).standard_normal(len(values))
    check_same_function(probed, Answers([*(values + noise)], []), world.student)
    for other in (values + 0.1, np.full(len(values), np.nan)):
        with pytest.raises(SoftshardsError, match="computes another function"):
            check_same_function(probed, Answers([*other], []), world.student)


def test_the_probe_goes_past_a_sliding_window_and_not_past_the_context() -> None:
    settings: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 32}
    settings |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    for window, context, length in ((70, 512, 118), (70, 100, 100), (5000, 8192, TOKENS)):
        config = MistralConfig(sliding_window=window, max_position_embeddings=context, **settings)
        row = probe(MistralForCausalLM(config)).row
        assert len(row.tokens) == length
        assert (row.positions[0], row.positions[-1]) == (1, length - 1)


def test_settings_that_llama_cpp_ignores_are_refused(tmp_path: Path) -> None:
    """Before anything is fetched or converted."""
    config = Qwen3MoeConfig(
        vocab_size=300, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_experts=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, moe_intermediate_size=16,
        num_experts_per_tok=1, norm_topk_prob=False,
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "moe")
    nowhere = tmp_path / "no-llama.cpp"
    with pytest.raises(SoftshardsError, match="norm_topk_prob is false"):
        run(tmp_path / "moe", tmp_path / "out", "gguf:q8_0", llama_cpp=nowhere)
    config.norm_topk_prob = True
    config.save_pretrained(tmp_path / "moe")
    with pytest.raises(SoftshardsError, match=r"no llama\.cpp here"):
        run(tmp_path / "moe", tmp_path / "out", "gguf:q8_0", llama_cpp=nowhere)


def test_settings_get_the_names_that_the_converter_reads(tmp_path: Path) -> None:
    """The rest of the file stays; a student with the earlier names is left alone."""
    GPTNeoXConfig(rotary_pct=0.5, num_hidden_layers=3).save_pretrained(tmp_path / "neox")
    staged = tmp_path / "config.json"
    staged.symlink_to(tmp_path / "neox" / "config.json")
    add_earlier_names(staged)
    content = json.loads(staged.read_text())
    assert (content["rotary_pct"], content["num_hidden_layers"]) == (0.5, 3)
    kept = json.loads((tmp_path / "neox" / "config.json").read_text())
    assert kept["model_type"] == "gpt_neox"
    assert "rotary_pct" not in kept
    staged.unlink()
    staged.write_text('{"model_type": "gpt2", "n_positions": 8, "n_ctx": 9}')
    add_earlier_names(staged)
    assert json.loads(staged.read_text()) == {"model_type": "gpt2", "n_positions": 8, "n_ctx": 9}


@pytest.mark.parametrize(
    ("context", "load"),
    [(None, (128, 64)), (8192, (128, 64)), (193, (128, 64)), (64, (42, 21)), (4, (1, 2))],
)
def test_the_load_fits_the_context(context: int | None, load: tuple[int, int]) -> None:
    assert speed_load(context) == load


def test_shards_and_bfloat16_are_exported_like_one_file(world: World, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(world.teacher, dtype=torch.bfloat16)
    for name, size in (("one", "1GB"), ("many", "50KB")):
        shutil.copytree(
            world.teacher, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors")
        )
        model.save_pretrained(tmp_path / name, max_shard_size=size)
        run(tmp_path / name, tmp_path / f"{name}-int8")
    assert len([*(tmp_path / "many").glob("*.safetensors")]) > 2
    one, many = (load_file(tmp_path / f"{n}-int8" / "model.safetensors") for n in ("one", "many"))
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_a_lora_run_is_exported_with_its_adapters_merged(world: World, tmp_path: Path) -> None:
    assert train(train_config(world, tmp_path / "run", lora_r=4, epochs=1, lr=1e-1)) == 0
    record = run(tmp_path / "run" / "final", tmp_path / "int8")
    assert record.label_set == open_label_set(world.labels).content_digest
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "int8", dtype=torch.float32)
    ids = torch.arange(1, 40)[None]
    with torch.no_grad():
        own, final, start = (
            model(ids).logits.log_softmax(-1)
            for model in (
                exported,
                AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final"),
                AutoModelForCausalLM.from_pretrained(world.student),
            )
        )
    assert (own - final).abs().mean() < 0.2 * (start - final).abs().mean()


@pytest.mark.usefixtures("quick_children")
@pytest.mark.slow
def test_a_file_that_llama_cpp_cannot_read_is_an_error(tmp_path: Path) -> None:
    row = HeldOutRow(tokens=[1, 2], positions=[1], teacher_top=[2])
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\3\0\0\0")
    with pytest.raises(SoftshardsError, match=r"cut\.gguf: llama\.cpp cannot run the exported"):
        run_llama_cpp(tmp_path / "cut.gguf", [row], [], threads=1, timed=None)


@pytest.fixture(scope="module")
def converter() -> Iterator[Path]:
    """llama.cpp's converter, fetched once per machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LLAMA_CPP", raising=False)
        patch.setenv(CACHE, str(ROOT / ".cache"))
        yield find_converter(None).script.parent


@pytest.mark.usefixtures("quick_children")
@pytest.mark.slow
@pytest.mark.teacher
def test_a_student_in_llama_cpp(converter: Path, tmp_path: Path) -> None:
    """In 16 bits it has the student's log-probabilities; 4 bits cost some."""
    student = tmp_path / "Schüler eins"
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    make_model(student, vocab_size=49152, max_position_embeddings=64, **ids)
    copy_files(("tokenizer.json", "tokenizer_config.json"), TEACHER, student)
    rows = random_rows(4, 49152, longest=24)
    labels = build_label_set(tmp_path / "labels", student, rows, vocab_size=49152)
    settings: dict[str, Any] = {"llama_cpp": converter, "threads": 1, "labels": labels}
    record = run(student, tmp_path / "f16", "gguf:f16", **settings)
    assert [*record.files] == ["Schüler eins-f16.gguf"]
    measured = record.measured
    assert measured is not None
    assert measured.exported.labels == measured.student.labels == sum(r.n_labels for r in rows)
    assert measured.exported.ce == pytest.approx(measured.student.ce, abs=2e-3)
    assert measured.student.agreement == 1  # it is its own teacher
    assert measured.exported.agreement > 0.95
    assert measured.tokenizer_rows == 4
    assert measured.tokenizer_differs == 0
    assert measured.speed is not None
    assert measured.speed.threads == 1
    shards = tmp_path / "shards"  # and in bfloat16
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.bfloat16)
    model.save_pretrained(shards, max_shard_size="200KB")
    copy_files(("tokenizer.json", "tokenizer_config.json"), TEACHER, shards)
    assert len([*shards.glob("*.safetensors")]) > 1
    four = run(shards, tmp_path / "q4", "gguf:q4_0", **settings)
    assert four.measured is not None
    assert four.bytes < record.bytes * 0.7  # most of it are tables, in 8 bits
    assert four.measured.exported.agreement < measured.exported.agreement
    gap = four.measured.exported.ce - four.measured.student.ce
    assert 1e-4 < abs(gap) < 1  # of random tokens, so it may go either way


@pytest.mark.usefixtures("quick_children")
@pytest.mark.slow
def test_what_the_converter_does_not_know(world: World, converter: Path, tmp_path: Path) -> None:
    """A tokenizer that was trained here is not among those of published models."""
    with pytest.raises(SoftshardsError, match="does not know the student's tokenizer"):
        run(world.student, tmp_path / "out", "gguf:q8_0", llama_cpp=converter)
    assert not any(tmp_path.iterdir())
