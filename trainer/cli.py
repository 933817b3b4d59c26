"""Command `trainer`. Heavy imports happen inside the commands, so that --help is instant."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import cyclopts
from cyclopts import App, Parameter
from rich.console import Console

from schemas import SoftshardsError, __version__
from schemas.os_errors import as_user_error
from trainer.evaluate.evaluate_config import EvaluateConfig, ReportConfig
from trainer.slice.slice_config import SliceConfig
from trainer.sweep.sweep_config import SweepConfig
from trainer.train.train_config import TrainConfig

USER_ERROR = 2

app = App(
    name="trainer",
    version=__version__,
    help="Train students on a label set: no teacher in memory. See also `labeler --help`.",
    help_format="markdown",
    default_parameter=Parameter(negative_iterable=()),  # no --empty-... beside every list
)
# `main` says what is safe and what to do.
app.suppress_keyboard_interrupt = app.meta.suppress_keyboard_interrupt = False


@app.command
def train(config: TrainConfig) -> int:
    """Train a student on a label set.

    Minimizes forward KL to the teacher (over its stored top-k and the mass outside it) plus
    cross-entropy on the actual tokens, or whatever sum of losses `--loss` says. The run can be
    killed at any moment: the same command goes on from the newest checkpoint and gives the very
    same loss curve. A finished run is reused.
    Several processes: `accelerate launch -m trainer train ...`.

    Example: `trainer train --labels LABELS --student STUDENT --out RUN --epochs 2`
    """
    from schemas import open_label_set
    from trainer.train.run_record import RESULT, read_finished, run_facts

    labels = open_label_set(config.labels, allow_partial=config.allow_partial)
    if read_finished(config.out, run_facts(config, labels)):
        _say(f"finished: reused {config.out / RESULT}")
        return 0
    from trainer.train.loop import train as run

    return run(config, labels)


@app.command(name="slice")
def slice_(config: SliceConfig) -> int:
    """Make a student by leaving layers and feed-forward neurons of the teacher out.

    `--keep` removes one layer after the other: each time the one without which the model stays
    closest to the teacher's labels (KL with tail, on training labels), among those that change
    their input least. `--layers` and `--stride` say which layers stay. `--ffn-keep` then narrows
    the feed-forward blocks. The result is a checkpoint to train; untrained it is a poor model.

    Example: `trainer slice --teacher TEACHER --labels LABELS --out STUDENT --keep 20`
    """
    from trainer.slice.slice_teacher import slice_teacher

    return slice_teacher(config)


@app.command
def evaluate(config: EvaluateConfig) -> int:
    """Measure models on a held-out label set, against the teacher that labeled it.

    Per model and per kind of span: perplexity on the actual tokens, forward KL to the teacher with
    tail, how often both find the same token likeliest, and how far the student's certainty is from
    how often it is right (ECE). The teacher's own perplexity comes from
    its labels; it is not loaded. Models that were measured before are reused.

    Example: `trainer evaluate --labels HELDOUT --model STUDENT --model RUN/final --out eval.json`
    """
    from trainer.evaluate.measure import evaluate as run

    return run(config)


@app.command
def report(config: ReportConfig) -> int:
    """Put students, baselines and teacher side by side in one HTML file.

    Takes what `trainer evaluate` and `labeler bench` measured and the logs of training runs.

    Example: `trainer report --eval eval.json --bench bench.json --run kd=RUN_KD --run ce=RUN_CE
    --baseline untrained=STUDENT --labels LABELS --out report.html`
    """
    from trainer.report.build_report import report as run

    return run(config)


@app.command
def sweep(students: Path, *, settings: SweepConfig) -> int:
    """Train many students from one label set, and rank them.

    Each trial is a `trainer train` of its own under OUT/trials, run by Ray Tune: side by side where
    devices allow, stopped early where asked. Kill it at any moment: the same command reuses what is
    finished and goes on with the rest. Ends in a leaderboard: quality against size against speed.
    The exit code is 1 where a trial failed; the others are trained all the same.

    Example: `trainer sweep students.yaml --out SWEEP --dry-run`

    Parameters
    ----------
    students
        YAML: `base` (flags of `trainer train` for all trials), `grid` (flag: list of values; all
        combinations), `runs` (a list of trials), `slices` (students made by `trainer slice`).
    """
    from trainer.sweep.run_sweep import sweep as run

    return run(students, settings)


@app.meta.default
def launcher(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[Path | None, Parameter(name="--config")] = None,
) -> int | None:
    """Train students on a label set.

    Args:
        config: YAML file with flags of the command, one a line (`pack_tokens: 1024`). Flags on the
            command line win; unknown names are refused.
    """
    app.config = None  # of an earlier call in the same process
    if config is not None:
        app.config = cyclopts.config.Yaml(config, must_exist=True, use_commands_as_keys=False)
    return app(tokens, result_action="return_value", exit_on_error=True)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors of the user's making end it with one message and code 2."""
    # transformers imports torchao where it is installed, which warns of kernels for other machines.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        code = app.meta(arguments, result_action="return_value")
    except SoftshardsError as error:
        _refuse(error)
    except OSError as error:
        if (known := as_user_error(error)) is None:
            raise
        _refuse(known)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def _refuse(error: SoftshardsError) -> NoReturn:
    _say(f"error: {error}")
    sys.exit(USER_ERROR)


def _say(text: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(text, markup=False)
