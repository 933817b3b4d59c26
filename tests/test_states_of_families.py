"""Exact labels and hidden states of other architectures than Llama, from label set to gradient."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.runs.label_run import label
from schemas import SoftshardsError, open_label_set, validate_label_set
from schemas.file_names import FINAL
from tests.tiny_model import TEXT, make_tokenizer
from tests.trainer.student.families import save_family
from trainer.data.collate import Batch, collate
from trainer.data.dataset import LabelDataset
from trainer.student.student import load_student
from trainer.train.train_config import TrainConfig
from trainer.train.use_states import open_teacher, set_up_states

FAMILIES = (
    *("gemma2", "qwen2", "gpt2", "phi", "cohere", "granite", "olmo2", "mixtral"),  # heads differ
    *("bloom", "mpt", "gpt_neox", "falcon7", "opt", "stablelm_parallel", "starcoder2"),
    "gemma3_vision",
)
LAYER = "layer_0"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("tokenizer")
    return folder, make_tokenizer(folder)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_gradients_are_the_models_own(
    family: str, tokenizer: tuple[Path, int], tmp_path: Path
) -> None:
    """Head and states are captured by the labeler; the rest is dense, in float64."""
    check_family(family, *tokenizer, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "refusal"),
    [
        ("longcat", "the model has no list of 2 decoder layers"),  # it counts halves of layers
        ("opt_proj", "what the head reads and what layers return differ in width"),
        ("recurrent_gemma", "the teacher does more to its logits than a scale or a soft cap"),
    ],
)
def test_other_models_are_refused(
    family: str, refusal: str, tokenizer: tuple[Path, int], tmp_path: Path
) -> None:
    with pytest.raises(SoftshardsError, match=refusal):
        check_family(family, *tokenizer, tmp_path)


def check_family(family: str, tokenizer: Path, vocab: int, root: Path) -> None:
    """Label with a teacher of a family, and compare a student of it with dense distillation."""
    teacher = save_family(family, tokenizer, root / "teacher", vocab_size=vocab + 20)
    student_folder = save_family(family, tokenizer, root / "student", vocab_size=vocab + 20)
    torch.manual_seed(5)
    other = AutoModelForCausalLM.from_pretrained(student_folder)
    for parameter in other.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    other.save_pretrained(student_folder)
    corpus, out = root / "text.jsonl", root / "labels"
    corpus.write_text(json.dumps({"text": " ".join(TEXT[:2])}) + "\n")
    label(
        [str(corpus)],
        LabelConfig(
            model=teacher, out=out, engine="transformers", k=1, max_length=48,
            states=f"final,{LAYER.removeprefix('layer_')}", state_kl=0.0,
        ),
    )  # fmt: skip
    labels = open_label_set(out)
    assert list(validate_label_set(labels)) == []
    config = TrainConfig(
        labels=out, student=student_folder, out=root / "run",
        loss=("exact_kl=1", "states=1"), state_layers="all",
    )  # fmt: skip
    student = load_student(student_folder, labels)
    set_up_states(student, config, (labels,))
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    states, target = open_teacher(config.objective, student, (labels,), torch.device("cpu"))
    assert states is not None
    pack = next(iter(LabelDataset(labels, pack_tokens=128, states=(FINAL, LAYER))))
    batch = states.decoded(collate(pack, attention=student.attention))
    with torch.no_grad():
        logits, wanted, _ = dense_run(teacher, batch)
    own_logits, own_wanted, plain = dense_run(student_folder, batch)
    assert batch.states is not None
    exact_states = torch.stack([wanted[FINAL], wanted[LAYER]], 1)
    for stored, exact in zip(batch.states.unbind(1), exact_states.unbind(1), strict=True):
        assert distance(stored, exact) < 1e-3  # by the rounding of float16
    batch = dataclasses.replace(batch, states=exact_states.float())
    output = student.train()(batch, exact=target)
    output.exact[0].mean().backward()
    valid = labels.manifest.identity.vocab_size  # the tokenizer class of Qwen2 adds an id
    q, p = (each[:, :valid].log_softmax(1) for each in (logits, own_logits))
    kl = (q.exp() * (q - p)).sum(1)
    torch.testing.assert_close(output.exact[0].double(), kl, atol=1e-4, rtol=1e-4)
    kl.mean().backward()
    own = dict(student.model.named_parameters())
    online = {name: w.grad for name, w in plain.named_parameters() if w.grad is not None}
    largest = max(gradient.norm() for gradient in online.values())
    for name, gradient in online.items():
        found = own[name].grad
        assert found is not None, name
        assert (found - gradient).norm() <= 1e-3 * (gradient.norm() + 1e-3 * largest), name
    for (_, state), layer in zip(output.states, (LAYER, FINAL), strict=True):
        assert distance(state, own_wanted[layer]) < 1e-4, layer


def distance(found: Tensor, exact: Tensor) -> float:
    return float(((found - exact).norm() / exact.norm()).detach())


def dense_run(folder: Path, batch: Batch) -> tuple[Tensor, dict[str, Tensor], nn.Module]:
    """Return logits [n, V], the states of `LAYER` and the final ones, and the model, in float64."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    if any(name.endswith("experts") for name, _ in model.named_modules()):
        model = model.float()  # their grouped products know no float64
    found = model(batch.input_ids, output_hidden_states=True, use_cache=False)
    states = {LAYER: found.hidden_states[1], FINAL: found.hidden_states[-1]}
    taken = {name: state[0][batch.rows].double() for name, state in states.items()}
    return found.logits[0][batch.rows].double(), taken, model
