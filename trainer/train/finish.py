"""The end of a run: the trained model as a plain checkpoint, and result.json."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from schemas import __version__
from schemas.atomic import atomic_path
from schemas.redact import redacted_values
from trainer.file_digests import digest_files
from trainer.run_files import ADAPTER, FINAL, LOG, PROJECTIONS_FILE, RESULT, read_lines
from trainer.student.load_model import load_model, stored_dtype
from trainer.student.lora import merge_lora
from trainer.student.save_model import save_model
from trainer.student.student import count_parameters
from trainer.train.run_record import FinalLosses, HeldOutRecord, RunResult, TrainingSet
from trainer.train.run_state import Run
from trainer.train.save_restore import gather_states, split_projections
from trainer.train.train_config import TrainConfig

LAST_STEPS = 10
"""Steps that the final losses in result.json average over."""


def write_model(run: Run, name: str) -> None:
    """Write the student as it is now to OUT/name; every rank must call it.

    With LoRA the adapters are merged into the weights, and also written alone to `adapter/`.
    """
    config, folder = run.config, run.config.out / name
    dtype = model_dtype(config)
    weights, projections = split_projections(gather_states(run)["model"])
    if run.is_main and projections and name == FINAL:
        write_projections(run, projections)
    state = {name.removeprefix("model."): v for name, v in weights.items()}
    state = _untie_names(run.student.model, state)
    if run.is_main:
        files = ("tokenizer_config.json", "tokenizer.json")
        has_own = any((config.student / file).is_file() for file in files)
        tokenizer = config.student if has_own else run.labels.tokenizer_dir
        if config.lora:
            # A second copy: merging in place would end the training.
            base = load_model(config.student, from_config=config.from_config, seed=config.seed)
            model, write_adapters = merge_lora(base, config.lora, state)
            more: dict[str, Any] = {"folders": {ADAPTER: write_adapters}}
        else:
            model, more = run.student.model, {"state": state}
        save_model(
            model, folder, source=config.student, tokenizer_dir=tokenizer, dtype=dtype, **more
        )
    run.accelerator.wait_for_everyone()


def write_projections(run: Run, state: dict[str, Tensor]) -> None:
    """Write the projections of hidden states beside the model, by their pair of layers."""
    tensors = {
        pair: state[f"matching.projections.{number}.weight"].contiguous()
        for number, pair in enumerate(run.student.matched_layers)
    }
    with atomic_path(run.config.out / PROJECTIONS_FILE) as tmp:
        save_file(tensors, tmp)


def model_dtype(config: TrainConfig) -> torch.dtype:
    """Return the dtype of the models that a run writes."""
    return stored_dtype(config.student) if config.save_dtype == "student" else torch.float32


def _untie_names(model: PreTrainedModel, state: dict[str, Any]) -> dict[str, Any]:
    """Name tied weights as transformers loads them: by the first of their names."""
    first: dict[int, str] = {}
    names = model.named_parameters(remove_duplicate=False)
    known = {name: first.setdefault(id(parameter), name) for name, parameter in names}
    return {known.get(name, name): value for name, value in state.items()}


def finish(run: Run, *, best: HeldOutRecord | None, stopped_early: bool) -> None:
    """Write the trained model, then result.json, which marks the run as finished."""
    out = run.config.out
    write_model(run, FINAL)
    if run.is_main:
        last = read_lines(out / LOG)[-LAST_STEPS:]
        final = {n: sum(line[n] for line in last) / len(last) for n in ("loss", "kl", "ce")}
        result = RunResult(
            config=redacted_values(run.inputs.repeatable),
            facts=run.inputs.facts,
            steps=run.step,
            stopped_early=stopped_early,
            best=best,
            tokens=run.tokens,
            seconds=round(run.seconds, 3),
            tokens_per_s=round(run.tokens / max(run.seconds, 1e-9), 1),
            packed=run.is_packed,
            dtype=str(model_dtype(run.config)).removeprefix("torch."),
            state_pairs=run.student.matched_layers,
            final=FinalLosses(**final),
            **count_parameters(run.student.model),
            label_set=TrainingSet.of(run.labels, tokens=run.labels.tokens),
            softshards=__version__,
            files=digest_files(out / FINAL),
        )
        result.write(out / RESULT)
    run.accelerator.wait_for_everyone()
