"""The teacher's hidden states in a run: what a student is compared with, and on what device."""

from __future__ import annotations

import torch

from schemas import LabelSet, SoftshardsError
from schemas.file_names import FINAL
from schemas.version import STATES_2
from trainer.data.mixture import Part
from trainer.data.stored_states import require_states
from trainer.data.teacher_states import TeacherStates, open_head, open_states
from trainer.data.tempered import require_temperature
from trainer.evaluate.exact_kl import has_exact_kl
from trainer.losses.loss_table import LOSSES
from trainer.losses.objective import Objective
from trainer.losses.state_map import choose_pairs, parse_pairs
from trainer.student.exact_target import ExactTarget
from trainer.student.layers import decoder_layers
from trainer.student.state_matching import StateMatching
from trainer.student.student import Student
from trainer.train.train_config import TrainConfig


def check_labels(config: TrainConfig, parts: tuple[Part, ...]) -> None:
    """Refuse label sets that lack what the losses read, before the student is loaded.

    Raises:
        SoftshardsError: names the set, and what to do.
    """
    objective, sets = config.objective, tuple(part.labels for part in parts)
    for term in objective.terms:
        empty = [labels for labels in sets if labels.manifest.identity.k == 0]
        if empty and LOSSES[term.name].inputs in ("buckets", "top_k"):
            raise SoftshardsError(
                f"the labels hold no top-k, and --loss {term.name} compares it",
                path=empty[0].place,
                hint="use --loss exact_kl=1, which needs hidden states alone",
            )
    if objective.tail_temperature != 1:
        for labels in sets:
            require_temperature(labels, objective.tail_temperature)
    if objective.needs_final_state:
        require_states(sets, (FINAL,))
    if objective.matches_states:
        listed = parse_pairs(config.state_layers) or ()
        require_states(sets, tuple(dict.fromkeys(pair.teacher for pair in listed)))


def set_up_states(student: Student, config: TrainConfig, sets: tuple[LabelSet, ...]) -> None:
    """Let a student return what the losses compare with the teacher's states.

    Raises:
        SoftshardsError: the sets or the student have no such layers.
    """
    objective = config.objective
    layers = [FINAL] if objective.needs_final_state else []
    if objective.matches_states:
        record = require_states(sets, ())
        depth = len(decoder_layers(student.model))
        pairs = choose_pairs(config.state_layers, record.layers, depth)
        layers += [name for name in dict.fromkeys(p.teacher for p in pairs) if name not in layers]
        student.matching = StateMatching(
            student.model,
            [pair.student for pair in pairs],
            [layers.index(pair.teacher) for pair in pairs],
            width=record.dimensions,
            seed=config.seed,
        )
        student.matched_layers = tuple(map(str, pairs))
        projected = ", each through a projection" if student.matching.projections else ""
        student.notes.append(
            f"hidden states compared, student:teacher: {', '.join(student.matched_layers)}"
            f"{projected}"
        )
    student.teacher_layers = tuple(layers)


def open_teacher(
    objective: Objective, student: Student, sets: tuple[LabelSet, ...], device: torch.device
) -> tuple[TeacherStates | None, ExactTarget | None]:
    """Read what makes the teacher's states and, for losses over all ids, its distributions.

    Raises:
        SoftshardsError: a file of the sets is missing or altered.
    """
    if not student.teacher_layers:
        return None, None
    states = open_states(sets, student.teacher_layers, device)
    if not objective.needs_final_state:
        return states, None
    head = open_head(sets[0], device)  # `require_states` compared the others'
    place = student.teacher_layers.index(FINAL)
    return states, ExactTarget(head=head, layer=place, losses=objective.exact_losses)


def state_width(parts: tuple[Part, ...]) -> int:
    """Return the dimensions of the teacher's stored states; 0 without any."""
    record = parts[0].labels.states
    return 0 if record is None else record.dimensions


def teacher_bytes(
    config: TrainConfig, parts: tuple[Part, ...], student: Student, held_out: LabelSet | None
) -> int:
    """Return the bytes that the teacher takes of a device: its head, and bases of its states.

    The head of the held-out set is there, too, if the KL over all ids is measured on it.
    """
    sets = [parts[0].labels] if config.objective.needs_final_state else []
    if held_out is not None and has_exact_kl(held_out, student):
        sets.append(held_out)
    heads = [labels.head.weight[: student.valid_vocab].nbytes for labels in sets]
    coded = [part for part in parts if part.labels.states and part.labels.states.codec == STATES_2]
    return sum(heads) + 4 * len(coded) * len(student.teacher_layers) * state_width(parts) ** 2
