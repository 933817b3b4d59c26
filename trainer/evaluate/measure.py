"""Average the metrics of a model over a held-out label set."""

from __future__ import annotations

import math
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from accelerate.accelerator import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from schemas import LabelSet
from schemas.arrow import SPAN_KINDS
from trainer.console import ProgressBar
from trainer.data.collate import collate
from trainer.data.dataset import LabelDataset
from trainer.evaluate.bootstrap import REPLICATES, document_counts
from trainer.evaluate.calibration_error import BINS, bin_sums, expected_calibration_error
from trainer.evaluate.results import Metrics
from trainer.evaluate.worst_sequences import WorstSequences
from trainer.losses.batch_loss import label_losses
from trainer.student.student import Student

PACK_TOKENS = 2048

SUMS = ("labels", "ce", "kl", "agreement", "teacher_ce", "acceptance")
"""What is added up over labels, in the order of columns."""


class HeldOutMetrics(NamedTuple):
    """Metrics over all labels, and for each kind of span that occurs.

    Attributes:
        documents: records that this process measured.
        replicates: float64 [REPLICATES, columns of sums], of a bootstrap over documents.
    """

    all: Metrics
    kinds: dict[str, Metrics]
    documents: int
    replicates: NDArray[np.float64]


@torch.no_grad()
def measure(
    model: nn.Module,
    labels: LabelSet,
    *,
    device: torch.device,
    pack_tokens: int | None = None,
    among: Accelerator | None = None,
    worst: WorstSequences | None = None,
) -> HeldOutMetrics:
    """Average the metrics over every label of a set.

    Args:
        model: a `Student`, or one that DDP or FSDP wrapped.
        labels: the held-out set.
        device: where the model is.
        pack_tokens: tokens run at once.
        among: the processes that share the packs; all must call this. None: this process alone.
        worst: keeps the sequences with the highest KL.
    """
    student = model if isinstance(model, Student) else model.module
    assert isinstance(student, Student)
    budget = pack_tokens or max(PACK_TOKENS, labels.manifest.identity.max_length)
    sums = torch.zeros(len(SPAN_KINDS), len(SUMS), dtype=torch.float64)
    replicates = torch.zeros(REPLICATES, len(SUMS), dtype=torch.float64)
    bins = torch.zeros(len(SPAN_KINDS) * BINS, 3, dtype=torch.float64)
    documents: set[str] = set()
    rank, world = (among.process_index, among.num_processes) if among else (0, 1)
    packs = iter(
        LabelDataset(
            labels,
            pack_tokens=budget,
            padded=student.attention == "padded",
            window=1,
            vocab_map=student.vocab_map,
        )
    )
    with ProgressBar("measure", labels.labels, enabled=rank == 0) as progress:
        while group := list(islice(packs, world)):
            # Under FSDP every rank must run as often as the others: a rank without a pack of its
            # own runs the first, and does not count it.
            pack, counts = (group[rank], 1.0) if rank < len(group) else (group[0], 0.0)
            batch = collate(pack, attention=student.attention).to(device)
            output, (top1, top1_logp) = model(batch, with_top1=True)
            kl, ce = label_losses(output, batch)
            agrees = top1 == batch.topk_ids[:, 0]
            accepted = torch.minimum(batch.topk_logprobs, output.logp).exp().sum(1)
            values = [torch.ones_like(ce), ce, kl, agrees, -batch.token_logprob, accepted]
            stacked = torch.stack([v.double() for v in values], 1).cpu()
            if not counts:
                stacked.zero_()  # not multiplied: it may be infinite
            kinds = batch.kinds.cpu()
            sums.index_add_(0, kinds, stacked)
            by_row = stacked.new_zeros(len(pack.rows), len(SUMS))
            by_row.index_add_(0, batch.documents.cpu(), stacked)
            replicates += torch.from_numpy(document_counts(pack.documents)).T @ by_row
            documents.update(pack.documents if counts else ())
            if worst is not None:
                worst.add(pack, batch, kl, output, (top1, top1_logp))
            calibration = bin_sums(top1_logp.exp(), top1 == batch.targets).cpu()
            at = kinds * BINS + calibration[:, 0].long()
            bins.index_add_(0, at, calibration[:, 1:] * counts)
            progress.advance(sum(pack.n_labels for pack in group))
    if among is not None:
        sums, bins, replicates = (
            among.reduce(x.to(device), "sum").cpu() for x in (sums, bins, replicates)
        )
    bins = bins.view(len(SPAN_KINDS), BINS, 3)
    present = [index for index, row in enumerate(sums) if row[0] > 0]
    return HeldOutMetrics(
        all=_means(sums.sum(0), bins.sum(0)),
        kinds={SPAN_KINDS[index]: _means(sums[index], bins[index]) for index in present},
        documents=len(documents),
        replicates=replicates.numpy(),
    )


def _means(sums: Tensor, bins: Tensor) -> Metrics:
    count, ce, kl, agreement, teacher, accepted = sums.tolist()
    return Metrics(
        labels=int(count),
        ce=ce / count,
        ppl=math.exp(min(ce / count, 700.0)),
        kl=kl / count,
        agreement=agreement / count,
        ece=expected_calibration_error(bins),
        teacher_ce=teacher / count,
        teacher_ppl=math.exp(min(teacher / count, 700.0)),
        acceptance=min(accepted / count, 1.0),
    )
