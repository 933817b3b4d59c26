"""The end of a run: the trained model as a plain checkpoint, and result.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from trainer.student.lora import ADAPTER, merged
from trainer.student.save_model import save_model
from trainer.student.student import load_model, parameter_counts
from trainer.train.run_record import FINAL, write_result
from trainer.train.run_state import LOG, Run
from trainer.train.save_restore import gather_states

LAST_STEPS = 10
"""Steps that the final losses in result.json are a mean of."""


def write_model(run: Run, folder: Path) -> None:
    """Write the student as it is now; every rank has to call it.

    With LoRA the adapters are merged into the weights, and lie beside them in `adapter/`.
    """
    config = run.config
    state = {name.removeprefix("model."): v for name, v in gather_states(run)["model"].items()}
    state = _one_name_each(run.student.model, state)
    if run.is_main:
        files = ("tokenizer_config.json", "tokenizer.json")
        own = any((config.student / name).is_file() for name in files)
        tokenizer = config.student if own else run.labels.tokenizer_dir
        if config.lora_r:
            # A second copy: merging in place would end the training.
            base = load_model(config.student, from_config=config.from_config, seed=config.seed)
            model, adapter = merged(base, config, state)
            save_model(model, folder, tokenizer_dir=tokenizer, also={ADAPTER: adapter})
        else:
            save_model(run.student.model, folder, tokenizer_dir=tokenizer, state=state)
    run.accelerator.wait_for_everyone()


def _one_name_each(model: PreTrainedModel, state: dict[str, Any]) -> dict[str, Any]:
    """Tied weights under the name that transformers loads them by: the first."""
    first: dict[int, str] = {}
    names = model.named_parameters(remove_duplicate=False)
    known = {name: first.setdefault(id(parameter), name) for name, parameter in names}
    return {known.get(name, name): value for name, value in state.items()}


def finish(run: Run, *, best: dict[str, float] | None, stopped_early: bool) -> None:
    """Write the trained model, then result.json, after which the run counts as finished."""
    out = run.config.out
    write_model(run, out / FINAL)
    if run.is_main:
        lines = (out / LOG).read_text(encoding="utf-8").splitlines()
        last = [json.loads(line) for line in lines[-LAST_STEPS:]]
        final = {n: sum(line[n] for line in last) / len(last) for n in ("loss", "kl", "ce")}
        content: dict[str, Any] = {
            "config": run.config.to_dict(),
            "facts": run.facts,
            "steps": run.step,
            "stopped_early": stopped_early,
            "best": best,
            "tokens": run.tokens,
            "seconds": round(run.seconds, 3),
            "tokens_per_s": round(run.tokens / max(run.seconds, 1e-9), 1),
            "final": final,
            **parameter_counts(run.student.model),
        }
        write_result(out, content, run.labels)
    run.accelerator.wait_for_everyone()
