"""Commands that show label sets: `inspect`, `view`, `compare`."""

from __future__ import annotations

from labeler.labelsets.compare.compare_config import CompareConfig
from labeler.labelsets.inspect.inspect_config import InspectConfig
from labeler.labelsets.view.view_config import ViewConfig


def inspect(config: InspectConfig) -> int:
    """Summarize a label set; with --row, show the teacher's predictions token by token.

    Prints facts, histograms, figures by source and kind of span, and the rows that stand out.

    Example: `labeler inspect ./labels --row corpus.jsonl:7`
    """
    from labeler.labelsets.inspect.inspect_command import run_inspect

    return run_inspect(config)


def view(config: ViewConfig) -> int:
    """Read a label set in the browser: hover a token to see what the teacher predicted there.

    Serves the whole set to this machine only, until Ctrl-C; with --out, writes one page with a
    sample that needs no server and no network.

    Example: `labeler view ./labels`, `labeler view ./labels --out page.html --rows 20`, or, two
    teachers on the same rows, `labeler view ./labels-a ./labels-b`
    """
    from labeler.labelsets.view.view_command import run_view

    return run_view(config)


def compare(config: CompareConfig) -> int:
    """Compare two teachers with the same tokenizer, or one teacher run in two ways, token by token.

    Prints KL, agreement and the worst positions: what a cheaper teacher costs in quality.

    Example: `labeler compare ./labels-bf16 ./labels-fp8`, or
    `labeler compare bf16.yaml fp8.yaml corpus.jsonl --rows 200`
    """
    from labeler.labelsets.compare.compare_report import run_compare

    return run_compare(config)
