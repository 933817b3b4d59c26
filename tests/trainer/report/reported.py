"""Files that `trainer report` reads: measurements, speeds and runs, without any model."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from schemas.bench_results import BenchModel, BenchResults, Measured, write_bench_results
from schemas.manifest import Identity
from trainer.evaluate.bootstrap import REPLICATES, interval, to_text
from trainer.evaluate.results import (
    Bin,
    EvaluationResults,
    HeldOutSet,
    MeasuredModel,
    MeasuredTeacher,
    Metrics,
    model_digest,
)
from trainer.evaluate.worst_sequences import Choice, ShownToken, WorstPosition, WorstSequence
from trainer.report.report_config import ReportConfig
from trainer.run_files import FINAL, LOG, RESULT, append_line
from trainer.train.run_record import FinalLosses, RunResult, TrainingSet

DIGEST = "ab" * 32
IDENTITY = Identity(
    weights=DIGEST,
    weights_scope="full",
    model_config_digest=DIGEST,
    tokenizer=DIGEST,
    vocab_size=49152,
    dtype="float32",
    head_dtype="float32",
    chat_template=None,
    quantization=None,
    sampling=None,
    mode="score",
    k=64,
    max_length=1024,
    overlap=1,
)


@dataclass
class Reported:
    """A folder with eval.json, runs and bench.json; add models, then write it.

    Attributes:
        root: the folder.
        documents: of the held-out set.
    """

    root: Path
    documents: int = 400
    teacher_ce: float = 2.3
    models: list[MeasuredModel] = field(default_factory=list)
    speeds: dict[str, float] = field(default_factory=dict)
    wobbles: tuple[float, ...] = (1.0, 1.02, 0.98)
    runs: list[str] = field(default_factory=list)
    baselines: list[str] = field(default_factory=list)

    def add(
        self,
        name: str,
        *,
        ce: float,
        kl: float = 0.5,
        loss: tuple[str, ...] | None = ("forward_kl=1", "ce=1"),
        speed: float | None = 250.0,
        noise: float = 0.01,
        tokens: int = 100_000,
        start: str = "start",
        seconds: float = 60.0,
        folder: str | None = None,
    ) -> None:
        """Add a model.

        Args:
            name: as the report names it.
            ce: held-out cross-entropy.
            kl: held-out KL.
            loss: of its training; None for a model that was not trained.
            speed: tokens generated per second, or None.
            noise: deviation of its replicates.
            tokens: trained on.
            start: digest of the starting weights.
            seconds: of training.
            folder: of the model, by default one of its own.
        """
        place = self.root / (folder or f"m{len(self.models)}")
        model = place / FINAL if loss else place
        model.mkdir(parents=True, exist_ok=True)
        save_file({"w": np.array([len(self.models)])}, model / "model.safetensors")
        random = np.random.default_rng(len(self.models))
        values = {"ce": ce, "kl": kl, "agreement": 0.6, "acceptance": 0.5, "accuracy": 0.6}
        values |= {"bits_per_byte": ce / 3, "overlap": 0.55, "ece": 0.02}
        replicates = {n: v + noise * random.standard_normal(REPLICATES) for n, v in values.items()}
        metrics = Metrics(
            labels=1000,
            ppl=float(np.exp(min(ce, 700.0))),
            teacher_ce=self.teacher_ce,
            teacher_ppl=float(np.exp(self.teacher_ce)),
            **values,
        )
        found = MeasuredModel(
            paths=[str(model)],
            weights=model_digest(model),
            dtype="fp32",
            parameters=100_000_000,
            non_embedding=80_000_000,
            bytes=400_000_000,
            all=metrics,
            documents=self.documents,
            intervals={n: interval(v, self.documents) for n, v in replicates.items()},
            replicates={n: to_text(v) for n, v in replicates.items()},
            calibration=_bins(0.6),
            worst=[_worst(name)],
        )
        self.models.append(found)
        if speed is not None:
            self.speeds[name] = speed
        if loss is None:
            self.baselines.append(f"{name}={place}")
            return
        self.runs.append(f"{name}={place}")
        RunResult(
            config={"loss": list(loss), "lr": 1e-4, "seed": 0, "student": "s", "out": str(place)}
            | {"labels": "labels"},
            facts={"config": {"student": start}, "labels": {"content": DIGEST}},
            steps=10,
            tokens=tokens,
            seconds=seconds,
            tokens_per_s=tokens / seconds,
            final=FinalLosses(loss=1.0, kl=kl, ce=ce),
            parameters=100_000_000,
            non_embedding=80_000_000,
            label_set=TrainingSet(
                path="labels", identity=IDENTITY, provenance={}, rows=1, labels=1, tokens=1
            ),
            softshards="0.1.0",
        ).write(place / RESULT)
        for step in range(1, 11):
            line = {"step": step, "tokens": tokens * step / 10, "kl": kl + 1 / step}
            append_line(place / LOG, line | {"ce": ce + 1 / step})

    def config(self, *, bench: bool = True, **settings: object) -> ReportConfig:
        """Write the files, and return the settings of a report on them."""
        EvaluationResults(
            label_set=HeldOutSet(
                path="held-out",
                identity=IDENTITY,
                provenance={"teacher": "models/teacher"},
                rows=500,
                labels=1000,
                digests={"identity": DIGEST, "plan": DIGEST, "content": DIGEST},
            ),
            teacher=MeasuredTeacher(
                weights=DIGEST,
                ce=self.teacher_ce,
                ppl=float(np.exp(self.teacher_ce)),
                path="models/teacher",
                bytes=800_000_000,
                parameters=200_000_000,
                non_embedding=180_000_000,
                calibration=_bins(0.65),
                accuracy=0.65,
                replicates={"accuracy": to_text(np.full(REPLICATES, 0.65))},
            ),
            models=self.models,
        ).write(self.root / "eval.json")
        known = {"teacher": 100.0} | self.speeds
        speeds = [
            BenchModel(
                name=name,
                model=f"x/{name}",
                reading=Measured.of([9.0, 9.1]),
                generating=Measured.of([speed * wobble for wobble in self.wobbles]),
            )
            for name, speed in known.items()
        ]
        write_bench_results(
            self.root / "bench.json",
            BenchResults(engine={"name": "vllm"}, models=tuple(speeds)),
        )
        values: dict[str, object] = {
            "eval": self.root / "eval.json",
            "bench": self.root / "bench.json" if bench else None,
            "run": tuple(self.runs),
            "baseline": tuple(self.baselines),
            "out": self.root / "report.html",
        }
        return ReportConfig(**(values | settings))  # type: ignore[arg-type]

    def content(self) -> dict[str, object]:
        """Return the report.json that was written."""
        found: dict[str, object] = json.loads((self.root / "report.json").read_text())
        return found


def _bins(accuracy: float) -> list[Bin]:
    return [
        Bin(
            low=at / 15,
            high=(at + 1) / 15,
            labels=10,
            documents=10,
            confidence=(at + 0.5) / 15,
            accuracy=accuracy,
        )
        for at in range(15)
    ]


def _worst(name: str) -> WorstSequence:
    choices = [Choice(text=" a", p=0.9), Choice(text="\n", p=0.05)]
    return WorstSequence(
        row=f"{name} (chunk 0, sample 0)",
        source="held.jsonl",
        kinds=["text"],
        labels=3,
        kl=2.0,
        start=4,
        length=9,
        tokens=[
            ShownToken(text="<b>bold</b>"),
            ShownToken(text=" two", kl=0.1),
            ShownToken(text="\n  three", kl=6.0),
            ShownToken(text="\u202e four", kl=float("inf")),
        ],
        positions=[
            WorstPosition(
                at=2,
                kl=6.0,
                teacher=choices,
                student=choices,
                teacher_actual=0.9,
                student_actual=0.001,
            )
        ],
    )
