"""Measure a model on a held-out label set, in one pass."""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch
from accelerate.accelerator import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from schemas import LabelSet, SoftshardsError
from trainer.console import ProgressBar
from trainer.data.collate import Batch, collate
from trainer.data.dataset import LabelDataset, own_packs
from trainer.data.exchange import Exchange
from trainer.data.vocab_map import VocabMap
from trainer.evaluate.exact_kl import ExactKl
from trainer.evaluate.figures import COLUMNS
from trainer.evaluate.grouping import Grouping
from trainer.evaluate.results import OVERLAP_K
from trainer.evaluate.tally import Measurements, Tally
from trainer.evaluate.token_bytes import token_bytes
from trainer.evaluate.worst_sequences import WorstSequences
from trainer.losses import reverse_kl
from trainer.losses.batch_loss import label_losses
from trainer.student.student import Student
from trainer.student.student_output import StudentOutput
from trainer.student.top_tokens import TopTokens

PACK_TOKENS = 2048


@torch.no_grad()
def measure(
    model: nn.Module,
    labels: LabelSet,
    *,
    device: torch.device,
    pack_tokens: int | None = None,
    top_k: int = OVERLAP_K,
    grouping: Grouping | None = None,
    among: Accelerator | None = None,
    exchange: Exchange | None = None,
    worst: WorstSequences | None = None,
    exact: ExactKl | None = None,
) -> Tally:
    """Add up the metrics over every label of a set.

    Args:
        model: a `Student`, or one that DDP or FSDP wrapped.
        labels: the held-out set.
        device: where the model is.
        pack_tokens: tokens run at once.
        top_k: length of the lists of tokens that are compared with the teacher's.
        grouping: parts of the set to measure separately; None measures only the kinds of spans, and
            without a bootstrap.
        among: the processes that share the packs; all must call this. The sums are then those of
            all, the documents those of this process. None: this process alone.
        exchange: these processes, to share the reading, too; None reads everything in each.
        worst: keeps the sequences with the highest KL.
        exact: measures the KL over all ids, too.

    Raises:
        SoftshardsError: the set holds no top-k to compare with.
    """
    if labels.manifest.identity.k == 0:
        raise SoftshardsError(
            "the labels hold no top-k (k is 0), which models are measured on", path=labels.place
        )
    student = model if isinstance(model, Student) else model.module
    assert isinstance(student, Student)
    budget = pack_tokens or max(PACK_TOKENS, labels.manifest.identity.max_length)
    tally = Tally(grouping or Grouping(), replicates=grouping is not None)
    sizes = _bytes_of_ids(labels, student.vocab_map) if grouping else None
    rank, world = (among.process_index, among.num_processes) if among else (0, 1)
    packs = LabelDataset(
        labels,
        pack_tokens=budget,
        padded=student.attention == "padded",
        window=1,
        exchange=exchange,
        vocab_map=student.vocab_map,
        meta=tally.grouping.needs_meta,
        states=() if exact is None else exact.states.layers,
    ).all_packs()
    with ProgressBar("measure", labels.labels, enabled=rank == 0) as progress:
        while group := list(islice(packs, world)):
            # Under FSDP every rank must run as often as the others: a rank without a pack of its
            # own runs the last, and does not count it.
            ((pack, counts),) = own_packs(group, rank, world)
            batch = collate(pack, attention=student.attention).to(device)
            if exact is not None:
                batch = exact.states.decoded(batch)
            target = None if exact is None else exact.target
            output, top = model(batch, top_k=top_k, exact=target)
            if counts:
                kl, ce = label_losses(output, batch)
                found = _measurements(batch, output, top, kl, ce, sizes)
                tally.add(pack.window, pack.rows, found)
                if worst is not None:
                    worst.add(pack, batch, kl, output, (top.ids[:, 0], top.logp))
            progress.advance(sum(pack.n_labels for pack in group))
    if among is not None:
        totals = torch.from_numpy(tally.totals).to(device)
        tally.totals = among.reduce(totals, "sum").cpu().numpy()
    return tally


def _measurements(
    batch: Batch,
    output: StudentOutput,
    top: TopTokens,
    kl: Tensor,
    ce: Tensor,
    sizes: NDArray[np.float64] | None,
) -> Measurements:
    """Return what is added up, for each label of a batch.

    Args:
        batch: the labels.
        output: the student's log-probabilities.
        top: the student's most likely tokens.
        kl: [n], as `label_losses` returns it; ce: likewise.
        sizes: bytes of each id, or None.
    """
    accepted = torch.minimum(batch.topk_logprobs, output.logp).exp().sum(1)
    tails = torch.minimum(batch.tail_logprob, output.log_rest).exp()
    values = {
        "labels": torch.ones_like(ce),
        "ce": ce,
        "kl": kl,
        "agreement": top.ids[:, 0] == batch.topk_ids[:, 0],
        "overlap": top_overlap(batch.topk_ids, top.ids),
        "acceptance": accepted,
        "acceptance_upper": accepted + tails,
        "teacher_ce": -batch.token_logprob,
        "reverse_kl": reverse_kl(
            batch.topk_logprobs, batch.tail_logprob, output.logp, output.log_rest
        ),
    }
    columns = np.full((len(ce), len(COLUMNS)), np.nan)
    if output.exact:
        values["exact_kl"] = output.exact[0]
    columns[:, : len(values)] = torch.stack([v.double() for v in values.values()], 1).cpu().numpy()
    if sizes is not None:
        columns[:, -2] = sizes[batch.targets.cpu().numpy()]
        columns[:, -1] = np.where(columns[:, -2] > 0, columns[:, 1], 0)
    return Measurements(
        values=columns,
        confidence=top.logp.double().exp().cpu().numpy(),
        correct=(top.ids[:, 0] == batch.targets).cpu().numpy(),
        kinds=batch.kinds.cpu().numpy(),
        owners=batch.documents.cpu().numpy(),
        weights=None if batch.label_weights is None else batch.label_weights.cpu().numpy(),
    )


def top_overlap(teacher: Tensor, student: Tensor) -> Tensor:
    """Return the share of the teacher's most likely ids that are among the student's, [n].

    The two lists are equally long: as the student's, or as the stored one where that is shorter
    (overlap at depth k: Webber, Moffat and Zobel, "A Similarity Measure for Indefinite Rankings",
    ACM TOIS 2010). A label without ids counts as 0.

    Args:
        teacher: [n, stored], the most likely first, padded with -1.
        student: [n, k], the most likely first.
    """
    ids = teacher[:, : student.shape[1]]
    depth = (ids >= 0).sum(1)
    places = torch.arange(student.shape[1], device=student.device)
    student = student.masked_fill(places >= depth[:, None], -2)
    both = torch.cat([ids, student], 1).sort(1).values  # ids are unique in either list
    common = (both[:, 1:] == both[:, :-1]) & (both[:, 1:] >= 0)
    return common.sum(1) / depth.clamp_min(1)


def _bytes_of_ids(labels: LabelSet, vocab_map: VocabMap | None) -> NDArray[np.float64] | None:
    """Return the bytes of each id of the student, by the teacher's tokenizer; None if unknown."""
    vocab = labels.manifest.identity.vocab_size
    found = token_bytes(labels.tokenizer_dir, vocab)
    if found is None or vocab_map is None:
        return None if found is None else found.astype(np.float64)
    mapped = np.zeros(vocab_map.student_vocab)
    known = vocab_map.ids >= 0
    mapped[vocab_map.ids[known]] = found[known]
    return mapped
