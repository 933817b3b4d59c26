"""Commands that look into label sets: `inspect`, `view`, `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number


def inspect(
    labels: Path,
    *,
    row: str | None = None,
    start: Annotated[int, Parameter(validator=Number(gte=0))] = 0,
    positions: Annotated[int, Parameter(validator=Number(gte=1))] = 20,
    rejects: bool = False,
    allow_partial: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Say what is in a label set; with --row, show what the teacher said token by token.

    Prints facts, histograms, figures by source and kind of span, and the rows that stand out.

    Example: `labeler inspect ./labels --row corpus.jsonl:7`

    Parameters
    ----------
    labels
        Folder of the label set, or a view of one.
    row
        The id of a row to print, colored by entropy, with its tokens beside the teacher's top 5:
        `first` for any, id/chunk=2 or id/sample=1 where there are several.
    start
        The first of that row's labels to print beside its top 5, counted from 0.
    positions
        How many of them to print.
    rejects
        List what could not be labeled, and why.
    allow_partial
        Also open a set that is still being labeled.
    as_json
        Print JSON on standard output.
    """
    from labeler.labelsets.inspect import inspect_report, row_view

    if rejects:
        inspect_report.print_rejects(labels, as_json=as_json)
    elif row is not None:
        row_view.print_row(labels, row, start, positions, partial=allow_partial, as_json=as_json)
    else:
        inspect_report.print_summary(labels, partial=allow_partial, as_json=as_json)


def view(
    labels: Path,
    other: Path | None = None,
    *,
    out_file: Annotated[Path | None, Parameter(name="--out")] = None,
    rows: int = 20,
    seed: int = 0,
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 0,
    open_browser: Annotated[bool, Parameter(name="--open")] = True,
    allow_partial: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Read a label set in the browser: hover a token and see what the teacher thought of it.

    Serves the whole set to this machine alone until Ctrl-C; with --out, writes one page of a sample
    that needs no server and no network.

    Example: `labeler view ./labels`, `labeler view ./labels --out page.html --rows 20`, or, two
    teachers on the same rows, `labeler view ./labels-a ./labels-b`

    Parameters
    ----------
    labels
        Folder of the label set, or a view of one.
    other
        A second set or view of the same tokenizer, to be compared token by token. Rows are matched
        by id, chunk and sample.
    out_file
        Write this HTML file instead of serving.
    rows
        With --out: rows to draw at random.
    seed
        With --out: seed of the draw.
    port
        Port to serve on; 0 takes a free one.
    open_browser
        Open the page in the default browser.
    allow_partial
        Also open a set that is still being labeled.
    as_json
        Print the page's address, or the file's path and size, as JSON on standard output.
    """
    from labeler.labelsets.view.view_command import view_labels

    view_labels(
        labels,
        other,
        out_file=out_file,
        rows=rows,
        seed=seed,
        port=port,
        open_browser=open_browser,
        partial=allow_partial,
        as_json=as_json,
    )


def compare(
    a: Path,
    b: Path,
    inputs: list[str] | None = None,
    *,
    rows: int = 100,
    worst: int = 10,
    allow_partial: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Compare two teachers of one tokenizer, or one teacher run in two ways, at the same tokens.

    Prints KL, agreement and the worst positions, so that a cheaper teacher is chosen knowingly.

    Example: `labeler compare ./labels-bf16 ./labels-fp8`, or
    `labeler compare bf16.yaml fp8.yaml corpus.jsonl --rows 200`

    Parameters
    ----------
    a
        Folder of a label set, or a view of one; or a YAML file of `labeler label` settings (model,
        out, ...).
    b
        The other one, over the same rows.
    inputs
        With settings: what to label, as for `labeler label`.
    rows
        With settings: how many records of the input to label.
    worst
        Positions to show, those with the largest KL.
    allow_partial
        Also compare sets that are still being labeled.
    as_json
        Print JSON on standard output.
    """
    from labeler.labelsets.compare.compare_report import print_comparison

    print_comparison(
        a, b, inputs or [], rows=rows, worst=worst, partial=allow_partial, as_json=as_json
    )
