"""The model card: README.md in the folder of a trained student, as the Hub reads it."""

from __future__ import annotations

import math
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from huggingface_hub import try_to_load_from_cache

from schemas import SoftshardsError
from schemas.atomic import write_atomic
from schemas.hub_model import COMMIT, NAME
from schemas.printable import one_line
from trainer.export.provenance import read_license
from trainer.report.layout import environment
from trainer.report.markdown_text import is_ours, sign
from trainer.report.report_data import ReportContent, ReportedModel
from trainer.report.shown_text import FILTERS
from trainer.slice.slice_result import SLICE, SliceResult
from trainer.train.run_record import RunResult

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

README = "README.md"
TEMPLATE = "report/model_card.md.jinja"
TEACHER_COMMIT = "teacher_commit"
METRICS = {
    "ppl": ("perplexity", "Perplexity"),
    "bits_per_byte": ("bits_per_byte", "Bits per byte"),
    "kl": ("kl_divergence", "KL to the teacher (nats)"),
    "agreement": ("top_1_agreement", "Same next token as the teacher"),
    "ece": ("expected_calibration_error", "ECE"),
    "acceptance": ("acceptance_rate", "Accepted as drafts, at least"),
}
"""Metrics of the card: type and name in its model-index."""
RECIPE = (
    *("loss", "temperature", "epochs", "max_steps", "lora_r", "lora_alpha", "optimizer", "lr"),
    *("schedule", "warmup", "weight_decay", "clip", "pack_tokens", "packs_per_step", "dtype"),
    *("seed",),
)
"""Settings of `trainer train` that the card names: no paths."""


def check_card(folder: Path) -> None:
    """Check that a card can be written.

    Raises:
        SoftshardsError: the folder has a README.md that `write_card` did not write, or that was
            edited since.
    """
    path = folder / README
    if not is_ours(path):
        raise SoftshardsError(
            "the model card was not written by `trainer report`, or was edited since",
            path=path,
            hint="move it away, or leave out --model-card",
        )


def write_card(folder: Path, name: str, content: ReportContent) -> None:
    """Write the card of a run's model.

    Args:
        folder: the model's folder.
        name: of the run.
        content: the report.
    """
    write_atomic(folder / README, model_card(name, content))


def model_card(name: str, content: ReportContent) -> str:
    """Return the card of a run's model: a YAML header for the Hub, Markdown for people."""
    from huggingface_hub import ModelCardData

    model = next(m for m in content.models if m.name == name and m.role == "trained")
    license_ = _license(model.training)
    header = ModelCardData(
        model_name=one_line(name),
        base_model=_base_model(model.training),
        library_name="transformers",
        license=license_.get("license", "other"),
        license_name=license_.get("license_name"),
        license_link=license_.get("license_link"),
        pipeline_tag="text-generation",
        tags=["softshards", "knowledge-distillation"],
        eval_results=_results(model, content) or None,
        softshards=_facts(model, content),
    )
    env = environment()
    env.filters |= FILTERS
    text = env.get_template(TEMPLATE).render(
        header=header.to_yaml(),
        model=model,
        content=content,
        teacher=_teacher_name(content),
        metrics=METRICS,
        recipe=_recipe(model.training),
        license=license_,
    )
    return sign(text)


def _teacher_name(content: ReportContent) -> str:
    """Return the teacher's name on the Hub, else the last part of its folder."""
    provenance = content.held_out.provenance
    name = str(provenance.get("teacher") or content.teacher.path)
    return one_line(name if TEACHER_COMMIT in provenance else PurePath(name).name)


def _base_model(training: RunResult | None) -> str | None:
    """Return the name on the Hub of the weights that training began with; None for a folder."""
    if training is None:
        return None
    name, commit = (str(training.config.get(key)) for key in ("student", "revision"))
    return name if NAME.fullmatch(name) and COMMIT.fullmatch(commit) else None


def _license(training: RunResult | None) -> dict[str, str]:
    """Return the license of the weights that training began with, as their card states it.

    Of a student that was sliced, the card is the teacher's. {} where nothing states one.
    """
    if training is None:
        return {}
    student = Path(str(training.config["student"]))
    sliced = student / SLICE
    teacher = SliceResult.read(sliced, "a slice").teacher if sliced.is_file() else None
    cached = None
    if (base := _base_model(training)) is not None:
        commit = str(training.config["revision"])
        cached = try_to_load_from_cache(base, README, revision=commit)
    places = [student, *([Path(teacher)] if teacher else [])]
    places += [Path(cached).parent] if isinstance(cached, str) else []
    return next((found for place in places if (found := read_license(place))), {})


def _results(model: ReportedModel, content: ReportContent) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    held_out = content.held_out
    values = {name: getattr(model.metrics, name, None) for name in METRICS}
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="softshards-label-set",
            dataset_name=one_line(PurePath(held_out.path).name),
            dataset_revision=held_out.digests.get("content"),
            metric_type=METRICS[name][0],
            metric_name=METRICS[name][1],
            metric_value=round(value, 6),
        )
        for name, value in values.items()
        if value is not None and math.isfinite(value)
    ]


def _facts(model: ReportedModel, content: ReportContent) -> dict[str, object]:
    """Return what the Hub has no field for: teacher, label set and recipe, by digest."""
    facts: dict[str, object] = {
        "version": content.softshards,
        "teacher": _teacher_name(content),
        "held_out": dict(content.held_out.digests),
    }
    if (training := model.training) is not None:
        facts |= {
            "teacher_weights": training.label_set.identity.weights,
            "label_set": dict(training.facts.get("labels", {})),
            "started_from": training.facts.get("config", {}).get("student"),
            "recipe": _recipe(training),
            "steps": training.steps,
            "tokens": training.tokens,
        }
    return facts


def _recipe(training: RunResult | None) -> dict[str, object]:
    settings = training.config if training else {}
    shown: dict[str, object] = {
        name: settings[name] for name in RECIPE if settings.get(name) is not None
    }
    if training and training.state_pairs:  # of --loss states
        shown |= {
            "state_layers": ",".join(training.state_pairs),
            "state_loss": settings.get("state_loss"),
        }
    return shown
