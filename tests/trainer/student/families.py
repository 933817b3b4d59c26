"""Try tiny models of many families as students: each is right, or refused.

`python -m tests.trainer.student.families` writes the table of docs/students.md.
"""

from __future__ import annotations

import copy
import re
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
import yaml
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from schemas import SoftshardsError
from trainer.data.collate import document_starts, lay_out
from trainer.student.load_model import load_model
from trainer.student.save_model import save_model
from trainer.student.student import Student, make_student

VOCAB, ROWS = 280, 300
"""Token ids, and rows of the head, which is padded."""

LENGTHS = (9, 34, 1, 20)
"""Tokens of the documents; windows are 8 tokens wide."""

PAGE = Path("docs/students.md")

_FILE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
FAMILIES: dict[str, list[Any]] = _FILE["families"]


class Outcome(NamedTuple):
    """What becomes of a family as a student.

    Attributes:
        model: the class of the model.
        how: the layout of documents and the attention, or the reason of a refusal.
    """

    model: str
    how: str


def family_config(family: str, *, vocab_size: int = ROWS) -> PretrainedConfig:
    """Return the configuration of a family's tiny model."""
    name, *common, settings = FAMILIES[family]
    shared, size = _FILE["common"], {"vocab_size": vocab_size}
    if "text_config" in settings:
        settings = settings | {"text_config": shared | settings["text_config"] | size}
    else:
        settings = (shared if common else {}) | settings | size
    config: PretrainedConfig = getattr(transformers, f"{name}Config")(**settings)
    return config


def save_family(family: str, tokenizer_from: Path, folder: Path, *, vocab_size: int) -> Path:
    """Write a family's tiny model with seeded weights, and the tokenizer of another student."""
    shutil.copytree(tokenizer_from, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(2)
    config = family_config(family, vocab_size=vocab_size)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def try_family(family: str, folder: Path) -> Outcome:
    """Train a family for two steps, or see it refused.

    Args:
        family: a key of FAMILIES.
        folder: a new folder for its files.

    Raises:
        AssertionError: a value differs from the plain model's, or a saved model's from the trained.
    """
    name = FAMILIES[family][0]
    config = family_config(family)
    config.save_pretrained(folder)
    try:
        model = load_model(folder, from_config=True, seed=1)
        name = type(model).__name__
        student = make_student(model, VOCAB).eval()
    except SoftshardsError as error:
        # Differences are rounded otherwise on another machine.
        reason = re.sub(r" \([^()]* differ [^)]*\)", "", str(error).splitlines()[0])
        return Outcome(name, f"refused: {reason.removeprefix(f'{folder}: ')}")
    _check_values(student, config)
    _check_saved(student, folder)
    return Outcome(name, f"{student.attention}, {model.config._attn_implementation}")


def _check_values(student: Student, config: PretrainedConfig) -> None:
    """Compare packed documents with the plain model: values, and the gradient of every weight."""
    plain: PreTrainedModel = AutoModelForCausalLM.from_config(
        copy.deepcopy(config), attn_implementation="eager"
    ).eval()
    plain.load_state_dict(student.model.state_dict())
    rows = []
    for ids in _documents():
        if len(ids) > 1:
            logits = plain(input_ids=ids[None], use_cache=False).logits[0, :-1, :VOCAB]
            rows.append(logits.float().log_softmax(-1).gather(1, ids[1:, None])[:, 0])
    found, expected = _packed(student), torch.cat(rows)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    ours = {name: p for name, p in student.model.named_parameters() if p.requires_grad}
    theirs = {name: p for name, p in plain.named_parameters() if name in ours}
    gradients = [
        torch.autograd.grad(values.mean(), [*of.values()], allow_unused=True)
        for values, of in ((found, ours), (expected, theirs))
    ]
    largest = max(float(grad.abs().max()) for grad in gradients[1] if grad is not None)
    for name, own, other in zip(ours, *gradients, strict=True):
        assert (own is None) == (other is None), name
        if own is not None and other is not None:
            torch.testing.assert_close(own, other, atol=1e-3 * largest, rtol=1e-3)


def _check_saved(student: Student, folder: Path) -> None:
    """Step and save; the loaded model has the same values, and the same weights a step later."""
    _step(student)
    save_model(student.model, folder / "saved", source=folder, tokenizer_dir=folder)
    again = make_student(load_model(folder / "saved"), VOCAB).eval()
    torch.testing.assert_close(_packed(again), _packed(student), atol=1e-5, rtol=0)
    _step(student)
    _step(again)
    for own, other in zip(student.model.parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)


def _documents() -> list[Tensor]:
    gen = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, VOCAB, (sum(LENGTHS),), generator=gen)
    return list(torch.split(tokens, list(LENGTHS)))


def _packed(student: Student) -> Tensor:
    """Return the log-probabilities of all tokens but each document's first, from one batch."""
    lengths = np.array(LENGTHS)
    tokens = torch.cat(_documents()).numpy().astype(np.int32)
    states = student.states(lay_out(tokens, lengths, student.attention))
    starts = document_starts(lengths, student.attention)
    rows = [start + t - 1 for start, n in zip(starts, LENGTHS, strict=True) for t in range(1, n)]
    targets = torch.cat([ids[1:] for ids in _documents()])
    return student.label_logprobs(states[rows], targets[:, None], targets).target_logp


def _step(student: Student) -> None:
    """Make one step of gradient descent."""
    weights = [p for p in student.model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(-_packed(student).mean(), weights, allow_unused=True)
    norm = torch.stack([grad.norm() for grad in gradients if grad is not None]).norm()
    with torch.no_grad():
        for weight, grad in zip(weights, gradients, strict=True):
            if grad is not None:
                weight.sub_(0.05 / norm * grad)


def table_row(family: str) -> str:
    """Try a family; return its row in the table of docs/students.md."""
    with tempfile.TemporaryDirectory() as folder:
        outcome = try_family(family, Path(folder))
    return f"| {family} | `{outcome.model}` | {outcome.how} |"


def write_table() -> None:
    """Try all families in two processes, print the table and write it to docs/students.md."""
    text = PAGE.read_text(encoding="utf-8")
    head = "| family | model | packed or padded by, or refused |\n|---|---|---|\n"
    rows = []
    print(head, end="")
    with ProcessPoolExecutor(2, get_context("spawn"), initializer=_quiet) as pool:
        for row in pool.map(table_row, sorted(FAMILIES)):
            print(row, flush=True)
            rows.append(row)
    refused = sum("| refused: " in row for row in rows)
    counts = f"{len(rows) - refused} families are right, {refused} are refused"
    print(counts)
    before = re.sub(r"\d+ families are right, \d+ are refused", counts, text.split(head)[0])
    PAGE.write_text(before + head + "\n".join(rows) + "\n", encoding="utf-8")


def _quiet() -> None:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)


if __name__ == "__main__":
    write_table()
