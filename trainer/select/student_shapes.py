"""Parameters, bytes and speeds of students, and the constraints that rule some out."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from schemas import SoftshardsError
from schemas.bench_results import BenchResults
from schemas.errors import first_line
from schemas.hub_model import locate_model
from trainer.console import message_console, number, size
from trainer.run_files import FINAL
from trainer.select.select_file import Candidate, Constraints
from trainer.slice.slice_config import SliceConfig

COUNTED = ("parameters", "bytes")
BENCHED = ("memory", "reading", "generating")
TO_MEASURE = (
    "measure the students: `labeler bench NAME=FOLDER ... --out bench.json`, then pass --bench "
    "bench.json; sliced ones are in OUT/students"
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A student as it is used; None where it is not known.

    Attributes:
        parameters, bytes: of its checkpoint.
        memory: bytes. reading, generating: tokens/s. All by `labeler bench`.
    """

    parameters: int | None = None
    bytes: int | None = None
    memory: int | None = None
    reading: float | None = None
    generating: float | None = None


def measure_shapes(candidates: list[Candidate], bench: BenchResults | None) -> dict[str, Shape]:
    """Return the shape of each candidate's student, by the candidate's name.

    Raises:
        SoftshardsError: a student, or the teacher to slice one from, cannot be read.
    """
    counted: dict[tuple[str, str], tuple[int, int] | None] = {}
    shapes = {}
    for candidate in candidates:
        config = candidate.trial.config
        key = (str(config.student), config.save_dtype)
        if key not in counted:
            counted[key] = _count(candidate)
        parameters, weight_bytes = counted[key] or (None, None)
        folders = [config.student, config.out / FINAL, config.out]
        found = bench.find(config.student.name, folders) if bench else None
        shapes[candidate.name] = Shape(
            parameters=parameters,
            bytes=weight_bytes,
            memory=found.peak_memory_bytes if found else None,
            reading=found.reading.median if found else None,
            generating=found.generating.median if found else None,
        )
    return shapes


def rule_out(
    shapes: dict[str, Shape], limits: Constraints, required: Collection[str]
) -> dict[str, str]:
    """Return the candidates that constraints rule out, and why.

    Args:
        shapes: of the candidates, by name.
        limits: the constraints.
        required: candidates that are refused if no constraint rules them out, and nothing is known
            of what one asks about.

    Raises:
        SoftshardsError: the hint says how to measure what is not known.
    """
    out = {}
    for name, shape in shapes.items():
        reasons = list(_violations(shape, limits))
        if reasons:
            out[name] = "; ".join(reasons)
        elif name in required and (unknown := _unknown(shape, limits)):
            raise SoftshardsError(
                f"constraints.{unknown[0]}: {name} was not measured",
                hint=TO_MEASURE if unknown[0] in BENCHED else "",
            )
    return out


def unchecked_warnings(
    shapes: dict[str, Shape], limits: Constraints, ruled_out: Collection[str]
) -> list[str]:
    """Return a warning for each constraint that some candidates cannot be checked for yet."""
    left = {
        name: _unknown(shape, limits) for name, shape in shapes.items() if name not in ruled_out
    }
    warnings = []
    for field in (*COUNTED, *BENCHED):
        if names := [name for name, unknown in left.items() if field in unknown]:
            why = TO_MEASURE if field in BENCHED else "their students are not sliced yet"
            warnings.append(
                f"constraints.{field} cannot be checked for {len(names)} of {len(left)} candidates "
                f"({names[0]}{', ...' if names[1:] else ''}): {why}"
            )
    return warnings


def _unknown(shape: Shape, limits: Constraints) -> list[str]:
    """Return the constraints that nothing is known for."""
    return [
        field
        for field in (*COUNTED, *BENCHED)
        if getattr(limits, field) is not None and getattr(shape, field) is None
    ]


def _violations(shape: Shape, limits: Constraints) -> Iterator[str]:
    for field in (*COUNTED, *BENCHED):
        limit, value = getattr(limits, field), getattr(shape, field)
        if limit is None or value is None:
            continue
        is_speed = field in ("reading", "generating")
        if value < limit if is_speed else value > limit:
            unit = "B" if field in ("bytes", "memory") else ""
            shown = [
                f"{number(each, 0)} tokens/s" if is_speed else size(each, unit)
                for each in (value, limit)
            ]
            yield f"{field}: {shown[0]}, {'at least' if is_speed else 'at most'} {shown[1]}"


def _count(candidate: Candidate) -> tuple[int, int] | None:
    """Return parameters and bytes of a student that trains, or will be sliced; None if unknown."""
    import torch
    from transformers import AutoModelForCausalLM

    from trainer.student.layers import decoder_layers
    from trainer.student.load_model import read_config, stored_dtype
    from trainer.student.student import count_parameters

    config = candidate.trial.config
    to_slice = None if candidate.is_there else candidate.slice
    folder = _teacher(to_slice) if to_slice else _folder(config.student, config.revision)
    try:
        with torch.device("meta"):  # shapes, no weights
            model = AutoModelForCausalLM.from_config(read_config(folder), trust_remote_code=False)
    except (OSError, ValueError) as error:
        what = f"no student can be read here: {first_line(error)}"
        raise SoftshardsError(what, path=folder) from error
    parameters = count_parameters(model)["parameters"]
    if to_slice is not None:
        if to_slice.ffn_keep < 1:
            return None
        layers = [sum(p.numel() for p in layer.parameters()) for layer in decoder_layers(model)]
        kept = to_slice.chosen(len(layers))
        count = len(kept) if kept is not None else to_slice.keep or len(layers)
        parameters -= round(sum(layers) * (1 - count / len(layers)))
    each = 4 if config.save_dtype == "fp32" else stored_dtype(folder).itemsize
    return parameters, parameters * each


def _folder(student: Path, revision: str | None) -> Path:
    return locate_model(
        student, say=lambda line: message_console().print(line), revision=revision, weights=False
    ).folder


def _teacher(cut: SliceConfig) -> Path:
    return _folder(cut.teacher, cut.revision)
