"""Train with the teacher loaded: the reference for offline labels.

    python -m benchmarks.quality.online --teacher TEACHER --objective dense \
        --labels LABELS --student STUDENT --out RUN [other flags of `trainer train`]

Packs, order, optimizer, schedule, checkpoints and the trained model are the trainer's. Only the
loss differs: it comes from the teacher's whole distribution, computed for each pack. The labels of
the set serve only for the logged KL.
"""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import Any, Literal

import torch
from cyclopts import App
from torch import Tensor

from schemas import SoftshardsError, open_label_set
from schemas.fingerprint import weights_digest
from trainer.console import ProgressBar, message_console
from trainer.data.collate import Batch, collate
from trainer.data.dataset import Pack
from trainer.losses import sampled_cross_entropy
from trainer.losses.batch_loss import label_losses
from trainer.run_files import LOG, append_line
from trainer.student.student import Student, load_student
from trainer.train.distributed import make_accelerator
from trainer.train.finish import finish
from trainer.train.loop import start_run
from trainer.train.run_lock import run_lock
from trainer.train.run_record import find_finished, open_inputs
from trainer.train.run_state import Run
from trainer.train.save_restore import save_run
from trainer.train.step import apply_gradients
from trainer.train.train_config import TrainConfig

Objective = Literal["dense", "sampled"]
app = App(help=__doc__)


@app.default
def train_online(
    config: TrainConfig, *, teacher: Path, objective: Objective, draws: int = 50
) -> None:
    """Train to the end; resume from a checkpoint; reuse a finished run.

    Args:
        teacher: the checkpoint that made the labels; it runs in float32, as it did for them.
        objective: dense forward KL over the vocabulary, or cross-entropy to ids drawn from the
            teacher (RS-KD, arXiv 2503.16870).
        draws: ids drawn per position, with replacement.

    Raises:
        SoftshardsError: the teacher did not make the labels, or this loop lacks a setting.
    """
    if config.packs_per_step != 1 or config.mix:
        raise SoftshardsError("the online loop takes one pack per step, of one label set")
    labels = open_label_set(config.labels)
    if weights_digest(teacher) != labels.manifest.identity.weights:
        raise SoftshardsError("this teacher did not make the labels", path=teacher)
    online = {"objective": objective, "draws": draws if objective == "sampled" else None}
    inputs = open_inputs(config, labels, extra={"online": online})
    console = message_console()
    if find_finished(inputs):
        console.print(f"finished: reused {config.out}")
        return
    accelerator = make_accelerator(config)
    with run_lock(config.out, "benchmarks.quality.online"):
        run = start_run(inputs, accelerator, console)
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
                append_line(config.out / LOG, record)
                progress.advance(note=f"loss {record['loss']:.3f}")
                last = run.step == run.total_steps
                if config.save_every and run.step % config.save_every == 0 and not last:
                    save_run(run)
        finish(run, best=None, stopped_early=False)


def _step(run: Run, pack: Pack, judge: Student, objective: Objective, draws: int) -> dict[str, Any]:
    """Take one optimizer step like `trainer.train.step`; return its log line."""
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
    lr = apply_gradients(run, [pack])
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
    """Return the log-probabilities [n, V] of all real tokens, float32, which the op never holds."""
    assert model.scale == 1
    assert model.softcap is None
    head: Any = model.model.get_output_embeddings()
    with torch.autocast(hidden.device.type, enabled=False):
        logits = head(hidden.to(head.weight.dtype))[:, : model.valid_vocab]
        return logits.float().log_softmax(1)


def dense_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """Return KL(teacher || student) of log-probabilities [n, V], summed over positions, in nats."""
    return torch.nn.functional.kl_div(student, teacher, reduction="sum", log_target=True)


def draw(teacher: Tensor, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw ids from each row of log-probabilities [n, V].

    Returns:
        ids [n, draws], distinct and padded with -1; the count of each [n, draws].
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
