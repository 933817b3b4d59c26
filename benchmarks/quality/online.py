"""Train with the teacher loaded: what offline labels are measured against.

    python -m benchmarks.quality.online --teacher TEACHER --objective dense \
        --labels LABELS --student STUDENT --out RUN [other flags of `trainer train`]

Packs, order, optimizer, schedule, checkpoints and the trained model are the trainer's; only the
loss is not: it comes from the teacher's whole distribution, computed for each pack. Of the label
set the tokens are used, and its labels only for the KL that is logged.
"""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import Any, Literal

import torch
from cyclopts import App
from rich.console import Console
from torch import Tensor

from schemas import SoftshardsError, open_label_set
from schemas.fingerprint import weights_digest
from trainer.console import ProgressBar
from trainer.data.collate import Batch, collate
from trainer.data.dataset import Pack
from trainer.data.mixture import open_mixture
from trainer.losses import sampled_cross_entropy
from trainer.losses.objective import label_losses
from trainer.student.student import Student, load_student
from trainer.train import checkpoint
from trainer.train.distributed import make_accelerator
from trainer.train.finish import finish
from trainer.train.loop import start_run
from trainer.train.run_record import read_finished, run_facts
from trainer.train.run_state import LOG, Run
from trainer.train.save_restore import save_run
from trainer.train.signals import only_one
from trainer.train.train_config import TrainConfig

Objective = Literal["dense", "sampled"]
app = App(help=__doc__)


@app.default
def train_online(
    config: TrainConfig, *, teacher: Path, objective: Objective, draws: int = 50
) -> None:
    """Train to the end; go on from a checkpoint; reuse what is finished.

    Args:
        teacher: the checkpoint that made the labels; it runs in float32, as it did then.
        objective: dense forward KL over the vocabulary, or cross-entropy to ids drawn from the
            teacher (RS-KD, arXiv 2503.16870).
        draws: ids drawn a position, with replacement.

    Raises:
        SoftshardsError: the teacher is another one, or the settings ask for what this loop lacks.
    """
    if config.packs_per_step != 1 or config.mix:
        raise SoftshardsError("the online loop knows one pack a step, of one label set")
    labels = open_label_set(config.labels)
    if weights_digest(teacher) != labels.manifest.identity.weights:
        raise SoftshardsError("this teacher did not make the labels", path=teacher)
    facts = run_facts(config, labels)
    facts["online"] = {"objective": objective, "draws": draws if objective == "sampled" else None}
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if read_finished(config.out, facts):
        console.print(f"finished: reused {config.out}")
        return
    accelerator = make_accelerator(config)
    with only_one(config.out, enabled=True):
        run = start_run(config, open_mixture(labels, ()), facts, accelerator, console)
        judge = load_student(teacher, labels).eval().requires_grad_(False).to(accelerator.device)
        if judge.attention != run.student.attention:
            raise SoftshardsError("teacher and student keep packed documents apart differently")
        packs = run.packs()
        with (
            ProgressBar("train online", run.total_steps, run.step) as progress,
            contextlib.closing(packs),
        ):
            while run.step < run.total_steps:
                began = time.monotonic()
                record = _step(run, next(packs), judge, objective, draws)
                run.seconds += time.monotonic() - began
                checkpoint.append_line(config.out / LOG, record)
                progress.advance(note=f"loss {record['loss']:.3f}")
                last = run.step == run.total_steps
                if config.save_every and run.step % config.save_every == 0 and not last:
                    save_run(run)
        finish(run, best=None, stopped_early=False)


def _step(run: Run, pack: Pack, judge: Student, objective: Objective, draws: int) -> dict[str, Any]:
    """One optimizer step, as `trainer.train.step` takes it; return its log line."""
    accelerator, student, n_labels = run.accelerator, run.student, pack.n_labels
    batch = collate(pack, attention=student.attention).to(accelerator.device)
    with accelerator.autocast():
        hidden = student.hidden(batch)
    with torch.no_grad():
        teacher = full_logprobs(judge, judge.hidden(batch))
        logged = student.label_logprobs(hidden, batch.topk_ids, batch.targets)
        kl, ce = label_losses(logged, batch)
    if objective == "dense":
        loss = dense_kl(teacher, full_logprobs(student, hidden))
    else:
        generator = torch.Generator(accelerator.device)
        generator.manual_seed(run.config.seed * 1_000_003 + run.step)
        loss = _sampled(student, hidden, batch, *draw(teacher, draws, generator))
    accelerator.backward(loss / n_labels)
    norm = float(accelerator.clip_grad_norm_(run.model.parameters(), run.config.clip or math.inf))
    lr = run.scheduler.get_last_lr()[0]
    run.optimizer.step()
    run.scheduler.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.step, run.reader, run.tokens = run.step + 1, pack.state, run.tokens + pack.n_tokens
    return {
        "step": run.step,
        "loss": float(loss.detach()) / n_labels,
        "kl": float(kl.sum()) / n_labels,
        "ce": float(ce.sum()) / n_labels,
        "lr": lr,
        "grad_norm": norm,
        "tokens": run.tokens,
        "labels": n_labels,
    }


def full_logprobs(model: Student, hidden: Tensor) -> Tensor:
    """Log-probabilities [n, V] of all real tokens, float32: what the op never holds."""
    assert model.scale == 1
    assert model.softcap is None
    head: Any = model.model.get_output_embeddings()
    with torch.autocast(hidden.device.type, enabled=False):
        logits = head(hidden.to(head.weight.dtype))[:, : model.valid_vocab]
        return logits.float().log_softmax(1)


def dense_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) of log-probabilities [n, V], summed over positions, in nats."""
    return torch.nn.functional.kl_div(student, teacher, reduction="sum", log_target=True)


def draw(teacher: Tensor, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids drawn from each row of log-probabilities [n, V], and how often each came.

    Returns:
        ids [n, draws], each once and then padded with -1; counts [n, draws].
    """
    drawn = torch.multinomial(teacher.exp(), draws, replacement=True, generator=generator)
    drawn = drawn.sort(1).values
    new = torch.ones_like(drawn, dtype=torch.bool)
    new[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    place = new.cumsum(1) - 1
    ids = torch.full_like(drawn, -1).scatter_(1, place, drawn)
    return ids, torch.zeros_like(drawn).scatter_add_(1, place, torch.ones_like(drawn))


def _sampled(student: Student, hidden: Tensor, batch: Batch, ids: Tensor, counts: Tensor) -> Tensor:
    logp, *_ = student.label_logprobs(hidden, ids, batch.targets)
    return sampled_cross_entropy(counts, logp).sum()


if __name__ == "__main__":
    try:
        app()
    except SoftshardsError as error:
        raise SystemExit(f"error: {error}") from None
