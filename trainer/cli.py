"""The command `trainer`. Commands import their work inside, so that --help is instant."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, NoReturn

from cyclopts import App, Parameter

from schemas.errors import SoftshardsError
from schemas.flags_file import run_with_flags
from schemas.os_errors import as_user_error, leave_closed_pipe
from schemas.terminal import DataConsole
from schemas.urls import refuse_urls
from schemas.version import __version__
from trainer.audit.audit_config import AuditConfig, CanariesConfig
from trainer.evaluate.answers.answer_flags import AnswerFlags
from trainer.evaluate.evaluate_config import EvaluateConfig
from trainer.evaluate.tasks.task_flags import TaskFlags
from trainer.export.export_config import ExportConfig
from trainer.report.report_config import ReportConfig
from trainer.rounds.rounds_config import RoundsConfig
from trainer.select.select_config import SelectConfig
from trainer.slice.slice_config import SliceConfig
from trainer.sweep.sweep_config import SweepConfig
from trainer.train.train_config import TrainConfig

USER_ERROR = 2
INTERRUPTED = 130

app = App(
    name="trainer",
    version=__version__,
    help="Train students on a label set: no teacher in memory. See also `labeler --help`.",
    help_format="markdown",
    # no --empty-... beside every list
    default_parameter=Parameter(negative_iterable=(), validator=refuse_urls),
    error_console=DataConsole(stderr=True, soft_wrap=False),
)
# `main` decides what an interruption prints.
app.suppress_keyboard_interrupt = app.meta.suppress_keyboard_interrupt = False


@app.command
def train(config: TrainConfig) -> int:
    """Train a student on a label set.

    Minimizes forward KL to the teacher (over its stored top-k and the mass outside it) plus
    cross-entropy on the actual tokens, or any sum of losses given by `--loss`. A run can be killed
    at any moment: the same command resumes from the newest checkpoint and gives the same loss
    curve. A finished run is reused.
    For several processes, use `accelerate launch -m trainer train`.

    Example: `trainer train --labels LABELS --student STUDENT --out RUN --epochs 2`
    """
    from trainer.console import message_console
    from trainer.run_files import RESULT
    from trainer.train.run_record import find_finished, open_inputs

    inputs = open_inputs(config)
    if find_finished(inputs):
        message_console().print(f"finished: reused {config.out / RESULT}")
        return 0
    from trainer.train.loop import train as run

    return run(config, inputs)


@app.command(name="slice")
def slice_(config: SliceConfig) -> int:
    """Make a student from some of the teacher's layers and feed-forward neurons.

    `--keep` removes one layer after the other: each time the layer without which the model stays
    closest to the teacher's labels (KL with tail, on training labels), among the layers that change
    their input least. `--layers` and `--stride` name the layers to keep instead. `--ffn-keep` then
    narrows the feed-forward blocks. The result is a checkpoint to train; untrained it is poor.

    Example: `trainer slice --teacher TEACHER --labels LABELS --out STUDENT --keep 20`
    """
    from trainer.slice.slice_teacher import slice_teacher

    return slice_teacher(config)


@app.command
def evaluate(
    config: EvaluateConfig, *, tasks: TaskFlags | None = None, answers: AnswerFlags | None = None
) -> int:
    """Measure models on a held-out label set, against the teacher that labeled it.

    For each model: perplexity and bits per byte of the actual text, forward KL to the teacher with
    tail, agreement of the most likely tokens, acceptance as a draft model, and calibration (ECE),
    with 95 % intervals over documents; by kind of span, source, length, and columns of the corpus
    (`--by`), with the worst group named. Several models are also compared with the first. The
    teacher's own figures come from its labels; it is not loaded. Models that were measured before
    are reused.

    `--tasks` also runs lm-evaluation-harness, and prints what the students keep of the teacher's
    results. `--answers` compares students' answers with the teacher's. Both run without `--labels`,
    too.

    Example: `trainer evaluate --labels HELDOUT --model STUDENT --model RUN/final --out eval.json
    --by meta.lang --teacher TEACHER --tasks mytask.yaml,arc_easy`
    """
    from trainer.evaluate.evaluate_models import evaluate as run

    return run(config, tasks, answers)


@app.command
def export(model: Path, *, config: ExportConfig) -> int:
    """Write a student for another runtime, in 16, 8 or 4 bits, and measure it there.

    GGUF is what llama.cpp, Ollama and LM Studio read; int8 is a checkpoint for vLLM. With
    `--labels`, the exported model runs in its runtime on held-out labels: perplexity, top token,
    size and speed stand beside the student's in OUT/export.json. A student that cannot be exported,
    or that does not run there, is refused with the reason. A finished export is reused.

    Example: `trainer export RUN/final --to gguf:q8_0 --labels HELDOUT --out RUN/gguf-q8_0`

    Args:
        model: student to export: a checkpoint folder such as RUN/final, or OWNER/NAME[@REVISION]
            on the Hub.
    """
    from trainer.export.export_student import export as run

    return run(model, config)


@app.command
def report(config: ReportConfig) -> int:
    """Say whether to ship a student: what it keeps, what it saves, and when that is paid back.

    Reads the results of `trainer evaluate` and `labeler bench`, and the logs of training runs.
    Writes one HTML page that loads nothing from elsewhere, and the same as Markdown and JSON. The
    answer is yes if the student predicts held-out text clearly better than the run on tokens alone
    (`--loss ce=1`), keeps `--keep` of the teacher's quality, and is faster or, by `--prices`,
    cheaper.

    Example: `trainer report --eval eval.json --bench bench.json --run kd=RUN_KD --run ce=RUN_CE
    --baseline untrained=STUDENT --labels LABELS --out report.html`
    """
    from trainer.report.build_report import report as run

    return run(config)


@app.command(name="rounds")
def rounds_(file: Path, *, config: RoundsConfig) -> int:
    """Let a student learn from the teacher's labels of its own answers, round after round.

    In each round the student answers prompts (vLLM), degenerate answers are filtered out, the
    teacher labels the others, with the ids that the student finds likely beside its own, and the
    student is trained on them, on older rounds and on off-policy labels. It is measured on its
    answers to held-out prompts: the rounds end when that KL stops falling. Teacher and student are
    never in memory together. Rounds can be killed at any moment: the same command resumes.

    Example: `trainer rounds rounds.yaml --out ROUNDS --dry-run`

    Args:
        file: YAML file with `teacher`, `student`, `prompts`, the numbers of rounds and prompts, and
            flags for each step: `generate`, `score` (of `labeler label`), `filter` (of `labeler
            curate`) and `train` (of `trainer train`). docs/rounds.md has all keys.
    """
    from trainer.rounds.run_rounds import rounds as run

    return run(file, config)


@app.command
def sweep(students: Path, *, settings: SweepConfig) -> int:
    """Train many students on one label set, and rank them.

    Each trial is a separate `trainer train` under OUT/trials, run by Ray Tune: in parallel where
    devices allow, stopped early with `--stop-early`. A sweep can be killed at any moment: the same
    command reuses finished trials and resumes the others. It ends in a leaderboard: quality against
    size against speed. The exit code is 1 if a trial failed; the other trials are trained anyway.

    Example: `trainer sweep students.yaml --out SWEEP --dry-run`

    Args:
        students: YAML file with `base` (flags of `trainer train` for all trials), `grid` (flag:
            list of values; all combinations), `runs` (a list of trials) and `slices` (students to
            make with `trainer slice`).
    """
    from trainer.sweep.run_sweep import sweep as run

    return run(students, settings)


@app.command(name="select")
def select_(file: Path, *, config: SelectConfig) -> int:
    """Find the best student for a budget: teacher, student, losses and kinds of labels.

    All candidates are trained for a few steps, the best of them further, the best of those to the
    end (successive halving), each resuming where it stopped. Constraints rule out candidates before
    that, and a warning says where distillation has little to gain: the teacher is unsure, a student
    is as good already, or the labels cover too little. It ends in a ranking with the reason for
    each elimination, and in OUT/best.yaml for `trainer train --config`. It can be killed at any
    moment: the same command resumes.

    Example: `trainer select select.yaml --out SELECTION --dry-run`

    Args:
        file: YAML file with `teachers` (their label sets, and their labels of one probe), `budget`,
            `constraints`, and `base`, `slices`, `grid` and `runs` as for `trainer sweep`.
            docs/select.md has all keys.
    """
    from trainer.select.run_select import select as run

    return run(file, config)


audit_app = App(name="audit", help_format="markdown")
app.command(audit_app)


@audit_app.default
def audit(config: AuditConfig) -> int:
    """Find out what models repeat of their training set.

    Each model continues prefixes of training rows greedily, and is asked for the personal data and
    secrets that patterns find in the training text; canaries (`trainer audit canaries`) are ranked
    by their likelihood. A --control that never saw the set tells what anybody would say. Nothing
    found is printed or written, only its place, unless --show-values asks for it. Models that were
    audited before are reused. Rules for `labeler curate` that drop the rows found are written
    beside OUT.

    Example: `trainer audit --labels LABELS --model RUN/final --control STUDENT --teacher TEACHER
    --out audit.json`
    """
    from trainer.audit.audit_models import audit as run

    return run(config)


@audit_app.command
def canaries(config: CanariesConfig) -> int:
    """Make sentences with random digits, to add to a corpus and to look for in the student.

    Label the file together with the corpus, train, and give it to `trainer audit --canaries`.

    Example: `trainer audit canaries --count 10 --repeat 8 --out canaries.jsonl`
    """
    from trainer.audit.canary_file import write_canaries

    return write_canaries(config)


@app.meta.default
def launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[Path | None, Parameter(name="--config")] = None,
) -> int | None:
    """Train students on a label set.

    Args:
        config: YAML file with flags of the command, one per line (`pack_tokens: 1024`). Flags on
            the command line win; unknown names are refused.
    """
    return run_with_flags(app, tokens, config)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an error that the user can act on is one message, with exit code 2."""
    # transformers imports torchao if it is installed, which warns of kernels for other machines.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        code = app.meta(arguments, result_action="return_value")
        sys.stdout.flush()
    except SoftshardsError as error:
        _refuse(error)
    except BrokenPipeError:
        sys.exit(leave_closed_pipe())
    except OSError as error:
        if (known := as_user_error(error)) is None:
            raise
        _refuse(known)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _refuse(error: SoftshardsError) -> NoReturn:
    from trainer.console import message_console

    message_console().print(f"error: {error}")
    sys.exit(USER_ERROR)
