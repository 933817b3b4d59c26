"""Command `labeler`. Commands import their work late, so that --help is fast."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

from cyclopts import App, Parameter

from labeler.commands import checking, exchanging, labeling, looking, making
from labeler.console import err
from schemas.errors import SoftshardsError
from schemas.flags_file import run_with_flags
from schemas.os_errors import as_user_error, leave_closed_pipe
from schemas.terminal import DataConsole
from schemas.urls import refuse_urls
from schemas.version import __version__

app = App(
    name="labeler",
    version=__version__,
    help="""Run a teacher once over a corpus or prompts and store its soft labels as Parquet.

    Example: `labeler label corpus.jsonl --model ./teacher --out ./labels`, then
    `labeler inspect ./labels`; each command has a --help with an example of its own.

    Exit codes: 0 done, 1 a check found a problem, 2 bad input or settings, 130 interrupted
    (143 by SIGTERM).""",
    # no --empty-... beside every list
    default_parameter=Parameter(negative_iterable=(), validator=refuse_urls),
    error_console=DataConsole(stderr=True, soft_wrap=False),
)
# `main` catches the interrupt: it says what is safe and what to do.
app.suppress_keyboard_interrupt = app.meta.suppress_keyboard_interrupt = False


for command in (
    *(labeling.label, labeling.preview, labeling.bench, labeling.plan_cluster),
    *(looking.inspect, looking.view, looking.compare),
    *(checking.verify, checking.repair),
    *(making.convert, making.curate, making.merge),
    *(exchanging.export, exchanging.push, exchanging.pull, exchanging.artifact),
):
    app.command(command)
app.command(exchanging.import_, name="import")
# cyclopts would show optional positionals as [ARGS].
app["verify"].usage = "Usage: labeler verify [OPTIONS] LABELS..."
app["view"].usage = "Usage: labeler view [OPTIONS] LABELS [OTHER]"
app["compare"].usage = "Usage: labeler compare [OPTIONS] A B [INPUTS...]"


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Path | None = None,
) -> int | None:
    """Run a command with settings from a file, and return its exit code.

    Args:
        config: YAML file with the command's own flags as keys; flags on the command line win.
    """
    return run_with_flags(app, _name_stdin(tokens), config)


def _name_stdin(tokens: tuple[str, ...]) -> list[str]:
    """Replace a lone `-`, which cyclopts takes for an option, with a path."""
    if "-" not in tokens:
        return list(tokens)
    from labeler.labeling.inputs.find_inputs import STDIN

    before = ("", *tokens)
    return [STDIN if t == "-" and not b.startswith("-") else t for b, t in zip(before, tokens)]


def main() -> None:
    """Run the command line; errors that the user can act on are one message, not a traceback."""
    # vLLM's CPU build warns on every start that memory is bound to a NUMA node.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        code = app.meta(result_action="return_value")
        sys.stdout.flush()
    except SoftshardsError as error:
        _refuse(error)
    except BrokenPipeError:
        sys.exit(leave_closed_pipe())
    except OSError as error:
        if (known := as_user_error(error)) is None:
            raise
        _refuse(known)
    except KeyboardInterrupt as error:
        err.print("interrupted; finished work is safe, the same command resumes")
        sys.exit(getattr(error, "exit_code", 130))
    sys.exit(code if isinstance(code, int) else 0)


def _refuse(error: SoftshardsError) -> NoReturn:
    err.print(f"error: {error}", style="red")
    sys.exit(2)
