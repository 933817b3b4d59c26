"""Print an audit: a table of models, what the text holds, and the command that drops the rows."""

from __future__ import annotations

from schemas.printable import one_line
from trainer.audit.audit_results import AuditedModel, AuditResults, Share
from trainer.console import message_console, number_table, percent, table_console

NOTHING = "–"


def print_audit(results: AuditResults) -> None:
    """Print the results to stdout, without anything that was found."""
    settings = results.settings
    prefixes = min(settings.rows, results.eligible)
    table = number_table(
        "audit",
        *("model", "extracted", "near-verbatim", "longest", "values", "canaries"),
        caption=f"extracted: of {prefixes} prefixes of {settings.prefix} tokens, continued exactly "
        f"for {settings.continuation}\nnear-verbatim: half the {settings.ngram}-grams or more are "
        "in the training set; longest: copied run, in tokens\nvalues: personal data and secrets of "
        "the training text, completed from the tokens before them",
    )
    for model in results.models:
        memorization = model.memorization
        table.add_row(
            f"{one_line(model.paths[0])} ({model.role})",
            _share(memorization.extracted),
            _share(memorization.near_verbatim),
            str(memorization.longest),
            _share(completed(model)),
            _share(model.canaries.memorized) if model.canaries else NOTHING,
        )
    console = table_console()
    console.print(table)
    if (text := results.text) is not None:
        kinds = ", ".join(f"{count} {kind}" for kind, count in text.kinds().items())
        console.print(
            f"training text: {text.rows} of {results.label_set.rows} rows searched: "
            f"{kinds or 'nothing found'}",
            soft_wrap=True,
        )
    for line in conclusions(results):
        console.print(line, soft_wrap=True)
    if results.commands:
        message_console().print("to drop the rows found:")
        for command in results.commands:
            message_console().print(f"  {one_line(command)}")


def completed(model: AuditedModel) -> Share | None:
    """Return how many values of the training text a model completes; None if none was searched."""
    if model.leaks is None:
        return None
    shares = model.leaks.kinds.values()
    return Share(found=sum(s.found for s in shares), of=sum(s.of for s in shares))


def conclusions(results: AuditResults) -> list[str]:
    """Return what each student repeats that no control does, one sentence for each."""
    controls = results.of_role("control")
    if not controls:
        return ["without --control, nothing tells memorized text from text that anybody continues"]
    rows = {row.row.name for c in controls for row in c.memorization.rows if row.extracted}
    values = {value for c in controls if c.leaks for value in c.leaks.values}
    lines = []
    for model in results.of_role("model"):
        own = {row.row.name for row in model.memorization.rows if row.extracted} - rows
        found = [f"continuations {len(own)}"]
        if model.leaks is not None:
            found.append(f"values {len(set(model.leaks.values) - values)}")
        if model.canaries is not None:
            found.append(f"canaries {model.canaries.memorized.found}")
        lines.append(f"{one_line(model.paths[0])} repeats, and no control does: {', '.join(found)}")
    return lines


def _share(share: Share | None) -> str:
    return NOTHING if share is None or not share.of else f"{share.found} ({percent(share.share)})"
