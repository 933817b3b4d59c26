"""The command `labeler`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import cyclopts
from cyclopts import App, Parameter

from labeler.commands import checking, exchanging, labeling, looking, making
from labeler.console import err
from labeler.labeling.inputs.find_inputs import STDIN
from schemas import SoftshardsError, __version__
from schemas.os_errors import explained

app = App(
    name="labeler",
    version=__version__,
    help="""Run a teacher once over a corpus or prompts and keep its soft labels as Parquet.

    Example: `labeler label corpus.jsonl --model ./teacher --out ./labels`, then
    `labeler inspect ./labels`; each command has a --help with an example of its own.

    Exit codes: 0 done, 1 a check found a problem, 2 bad input or settings, 130 interrupted
    (143 by SIGTERM).""",
    default_parameter=Parameter(negative_iterable=()),  # no --empty-... beside every list
)
# `main` says what is safe and what to do.
app.suppress_keyboard_interrupt = app.meta.suppress_keyboard_interrupt = False


for command in (
    *(labeling.label, labeling.preview, labeling.bench),
    *(looking.inspect, looking.view, looking.compare),
    *(checking.verify, checking.repair),
    *(making.convert, making.curate, making.merge),
    *(exchanging.export, exchanging.push, exchanging.pull, exchanging.artifact),
):
    app.command(command)
app.command(exchanging.import_, name="import")
# cyclopts would call what may be left out [ARGS].
app["view"].usage = "Usage: labeler view [OPTIONS] LABELS [OTHER]"
app["compare"].usage = "Usage: labeler compare [OPTIONS] A B [INPUTS...]"


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Path | None = None,
) -> None:
    """Run a command with settings from a file.

    Parameters
    ----------
    config
        YAML file with the command's own flags as keys; flags on the command line win.
    """
    app.config = None  # of an earlier call in the same process
    if config is not None:
        if not config.is_file():
            raise SoftshardsError("no such file", path=config, hint="check --config")
        app.config = (
            cyclopts.config.Yaml(config, use_commands_as_keys=False, search_parents=False),
        )
    # cyclopts takes a lone `-` for an option.
    before = ("", *tokens)
    app([STDIN if t == "-" and not b.startswith("-") else t for b, t in zip(before, tokens)])


def main() -> None:
    """Entry point: errors a user can act on are one message, never a traceback."""
    # vLLM's CPU build would say on every start that memory is bound to a NUMA node.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        app.meta()
    except SoftshardsError as error:
        _refuse(error)
    except OSError as error:
        if (known := explained(error)) is None:
            raise
        _refuse(known)
    except KeyboardInterrupt as error:
        err.print("interrupted; what was finished is safe, the same command goes on from there")
        sys.exit(getattr(error, "exit_code", 130))


def _refuse(error: SoftshardsError) -> NoReturn:
    err.print(f"error: {error}", style="red", markup=False)
    sys.exit(2)
