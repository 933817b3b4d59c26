"""The teacher's hidden states and its head, from label sets to a device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from schemas import LabelSet
from trainer.data.collate import Batch
from trainer.data.stored_states import mixes_codecs, require_states
from trainer.ops import TeacherHead


@dataclass(frozen=True, kw_only=True)
class TeacherStates:
    """Makes states of what label sets store. Its tensors are constants, and on the device.

    Attributes:
        layers: names of the layers, in the order of `Batch.states`.
        width: dimensions of a state.
        bases: of each layer, a basis per set: synthesis times step [sets, d, d] and mean [sets, d];
            None where states are stored as they are. Sets with the same bases have one.
    """

    layers: tuple[str, ...]
    width: int
    bases: tuple[tuple[Tensor, Tensor], ...] | None

    def decoded(self, batch: Batch) -> Batch:
        """Return a batch with float32 states. Codes arrive on the device as the bytes they are."""
        stored = batch.states
        assert stored is not None
        if self.bases is None:
            return replace(batch, states=stored.float())
        with torch.autocast(stored.device.type, enabled=False):
            return replace(batch, states=self._from_codes(stored, self.bases, batch.sets))

    def _from_codes(
        self, stored: Tensor, bases: tuple[tuple[Tensor, Tensor], ...], sets: Tensor | None
    ) -> Tensor:
        states = stored.new_empty(stored.shape, dtype=torch.float32)
        for number, (synthesis, mean) in enumerate(bases):
            codes = stored[:, number].float()
            found = torch.addmm(mean[0], codes, synthesis[0])
            for other in range(1, len(mean)):  # of few sets; picking rows would stall a GPU
                assert sets is not None
                of_other = torch.addmm(mean[other], codes, synthesis[other])
                found = torch.where((sets == other)[:, None], of_other, found)
            states[:, number] = found
        return states


def open_states(
    sets: tuple[LabelSet, ...], layers: tuple[str, ...], device: torch.device
) -> TeacherStates:
    """Read what the states of some layers are made with.

    Args:
        sets: the label sets of a mixture, in its order.
        layers: names of the layers to read.
        device: of the student.

    Raises:
        LabelSetError: a set lacks a layer, they cannot be mixed, or a file is missing or altered.
    """
    record = require_states(sets, layers)
    bases = []
    for layer in layers:
        of_sets = [found for labels in sets if (found := labels.basis(layer)) is not None]
        if not of_sets or mixes_codecs(sets):  # `as_half` has decoded the others
            return TeacherStates(layers=layers, width=record.dimensions, bases=None)
        if all(np.array_equal(of_sets[0].synthesis, b.synthesis) for b in of_sets[1:]) and all(
            (of_sets[0].step, *of_sets[0].mean) == (b.step, *b.mean) for b in of_sets[1:]
        ):
            of_sets = of_sets[:1]
        synthesis = np.stack([basis.synthesis * np.float32(basis.step) for basis in of_sets])
        mean = np.stack([basis.mean for basis in of_sets])
        bases.append((torch.from_numpy(synthesis).to(device), torch.from_numpy(mean).to(device)))
    return TeacherStates(layers=layers, width=record.dimensions, bases=tuple(bases))


def open_head(labels: LabelSet, device: torch.device) -> TeacherHead:
    """Read the teacher's head of a set, in the dtype in which the teacher ran.

    Raises:
        LabelSetError: the set has none, or it is missing or altered.
    """
    stored = labels.head
    weight = torch.from_numpy(np.array(stored.weight[: stored.facts.valid_vocab]))
    if weight.dtype == torch.uint16:  # the bits of bfloat16
        weight = weight.view(torch.bfloat16)
    return TeacherHead(
        weight=weight.to(device),
        bias=None if stored.bias is None else torch.from_numpy(stored.bias.copy()).to(device),
        scale=stored.facts.scale,
        softcap=stored.facts.softcap,
    )
