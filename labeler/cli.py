"""The command `labeler`."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import cyclopts
from cyclopts import App, Parameter

from labeler.config import LabelConfig, PreviewConfig
from labeler.console import err, human_bytes, human_seconds, out
from labeler.curation.config import CurateConfig
from labeler.inputs.finding import STDIN
from schemas import SoftshardsError, __version__

if TYPE_CHECKING:
    from labeler.runs.run import RunSummary

app = App(
    name="labeler",
    version=__version__,
    help="""Run a teacher once over a corpus or prompts and keep its soft labels as Parquet.

    Exit codes: 0 done, 1 a check found a problem, 2 bad input or settings, 130 interrupted
    (143 by SIGTERM).""",
    default_parameter=Parameter(negative_iterable=()),  # no --empty-... beside every list
)
# `main` says what is safe and what to do.
app.suppress_keyboard_interrupt = app.meta.suppress_keyboard_interrupt = False


@app.command
def label(
    inputs: list[str],
    *,
    settings: LabelConfig,
    dry_run: bool = False,
    calibrate: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Label a corpus or prompts with a teacher; stop it whenever you like, run it again to go on.

    Writes a label set to --out: one Parquet shard a work unit, each on disk for good before the
    next begins. The same command continues an unfinished set and leaves a finished one alone.

    Example: `labeler label corpus.jsonl --model ./teacher --out ./labels --k 64`

    Parameters
    ----------
    inputs
        Files (.jsonl, .json, .csv, .txt, each also .gz or .zst; .parquet, .arrow), folders of them,
        patterns ('data/*.jsonl'), URLs of any of these (https://, s3://, gs://, hf://, ...), - for
        JSON lines on standard input, Hugging Face datasets on disk, and label sets, whose rows are
        labeled again.
    dry_run
        Print the plan with estimated bytes, memory and time; write nothing, load no teacher.
    calibrate
        With --dry-run: load the teacher all the same, and measure the time on a few rows.
    as_json
        Print the summary as JSON on standard output.
    """
    from labeler.engines.vllm_engine import prepare_environment

    prepare_environment()
    from labeler.planning import report as plan_report
    from labeler.runs import run

    if calibrate and not dry_run:
        raise SoftshardsError("--calibrate belongs to --dry-run", mend="give both, or neither")
    if dry_run:
        plan_report.print_plan(inputs, settings, calibrate=calibrate, as_json=as_json)
        return
    summary = run.label(inputs, settings)
    if as_json:
        print(json.dumps(dataclasses.asdict(summary)))
    else:
        _print_summary(summary)
    if summary.stopped_by is not None:
        sys.exit(128 + signal.Signals[summary.stopped_by])


def _print_summary(summary: RunSummary) -> None:
    size = f"{human_bytes(summary.bytes)}, {summary.bytes / max(1, summary.labels):.0f} B a label"
    work = f"{summary.units_labeled} units labeled, {summary.units_reused} reused"
    out.print(
        f"{summary.out}: {summary.status}, {summary.rows} rows, {summary.labels} labels ({size}), "
        f"{summary.rejects} rejects; {work}, {human_seconds(summary.seconds)}"
    )
    if summary.stopped_by is not None:
        out.print(f"stopped by {summary.stopped_by}; the same command goes on from there")


@app.command
def preview(
    inputs: list[str],
    *,
    settings: PreviewConfig,
    rows: int = 3,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Show the first rows as the teacher will see them, with the tokens to be labeled coloured.

    Takes the flags of `label`, needs the teacher's tokenizer only, and writes nothing. Where the
    output is no terminal, labeled tokens stand in brackets with their kind.

    Example: `labeler preview chats.jsonl --model ./teacher --spans assistant`

    Parameters
    ----------
    inputs
        Files or folders, as `labeler label` takes them.
    rows
        Rows to show; rejected records count, too.
    as_json
        Print a JSON list with each token and the kind of its label.
    """
    from labeler.rendering.preview import print_preview

    print_preview(inputs, settings, rows, as_json=as_json)


@app.command
def inspect(
    labels: Path,
    *,
    row: str | None = None,
    start: int = 0,
    positions: int = 20,
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
        The id of a row to print, coloured by entropy, with its tokens beside the teacher's top 5:
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
    from labeler.checks import inspection_report, row_view

    if rejects:
        inspection_report.print_rejects(labels, as_json=as_json)
    elif row is not None:
        row_view.print_row(labels, row, start, positions, partial=allow_partial, as_json=as_json)
    else:
        inspection_report.print_summary(labels, partial=allow_partial, as_json=as_json)


@app.command
def view(
    labels: Path,
    other: Path | None = None,
    *,
    out_file: Annotated[Path | None, Parameter(name="--out")] = None,
    rows: int = 20,
    seed: int = 0,
    port: int = 0,
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
        Folder of the label set.
    other
        A second set of the same tokenizer, to be compared token by token. Rows are matched by id,
        chunk and sample.
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
    from labeler.viewer.command import view_labels

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


@app.command
def verify(
    labels: Path,
    *,
    rescore: int | Literal["all"] = 0,
    model: Path | None = None,
    tolerance: float = 1e-3,
    seed: int = 0,
    allow_partial: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Check a label set: hashes, schema and invariants; with --rescore, the labels themselves.

    Names what is wrong: labels shifted against the tokens, a wrong tokenizer, chat template or
    teacher, another temperature, a lost tail. Exit code 0: good; 1: something is wrong.

    Example: `labeler verify ./labels --rescore 4 --model ./teacher`

    Parameters
    ----------
    labels
        Folder of the label set, or a view of one.
    rescore
        Rows to compute again with the transformers reference engine, or `all`: only that finds
        one wrong label.
    model
        Folder of the teacher; by default, for --rescore, the one the set was made with. Its
        weights, tokenizer and chat template are compared with the set's, too.
    tolerance
        Largest difference of a logprob that counts as equal, beside the rounding of storage.
        Raise it for teachers in bfloat16.
    seed
        Seed of the choice of rows.
    allow_partial
        Also check a set that is still being labeled.
    as_json
        Print JSON on standard output: problems and notes, each with kind, where, what and mend.
    """
    from labeler.checks.verification import print_verification

    good = print_verification(
        labels,
        rescore=None if rescore == "all" else rescore,
        model=model,
        tolerance=tolerance,
        seed=seed,
        partial=allow_partial,
        as_machine=as_json,
    )
    if not good:
        sys.exit(1)


@app.command
def convert(
    labels: Path,
    out: Path,
    *,
    codec: Literal["plain", "compact"] = "compact",
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Write a label set, or the rows of a view, in another codec; prove each row as it goes.

    The identity stays the same, and so does all that a trainer sees, but for the rounding that
    docs/format.md allows. The source is not touched. Can be stopped and run again.

    Example: `labeler convert ./labels ./labels-compact --codec compact`

    Parameters
    ----------
    labels
        Folder of a complete label set, or a view of one.
    out
        Folder of the new set.
    codec
        plain: any Parquet reader reads it. compact: about 60 % of the bytes.
    as_json
        Print JSON on standard output.
    """
    from labeler.derived.convert import print_conversion

    print_conversion(labels, out, codec, as_json=as_json)


@app.command
def repair(
    labels: Path,
    *,
    model: Path | None = None,
    dry_run: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Rebuild what is damaged in a label set from what is good, and list the units to redo.

    Nothing is deleted: damaged files are moved into LABELS/quarantine. Manifest, index, journal,
    plan and tokenizer are rebuilt where something vouches for them; the same `labeler label`
    command then labels the units that are lost, and those alone. Exit code 0: the set is whole;
    1: something is left to do.

    Example: `labeler repair ./labels --dry-run`, then `labeler repair ./labels`

    Parameters
    ----------
    labels
        Folder of the label set.
    model
        Folder of the teacher, to copy tokenizer files from; by default the one the set names.
    dry_run
        Say what would be done; change nothing.
    as_json
        Print JSON on standard output: moved, rebuilt, redo and left.
    """
    from labeler.checks.repair import print_repair

    if not print_repair(labels, model=model, dry_run=dry_run, as_json=as_json):
        sys.exit(1)


@app.command
def curate(
    labels: Path,
    *,
    settings: CurateConfig,
    dry_run: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Choose rows of a label set by rules; write a view of them, and say what was removed and why.

    A view is a small file that every command and the trainer take in place of the set. Rules are
    applied in the order of this help, whatever the order of the flags.

    Example: `labeler curate ./labels --out good.view.json --where "mean_nll < 4" --dedup near`

    Parameters
    ----------
    labels
        Folder of a label set, or a view of one.
    dry_run
        Report, and write nothing.
    as_json
        Print the report as JSON on standard output.
    """
    from labeler.curation.curate import print_curation

    print_curation(labels, settings, dry_run=dry_run, as_json=as_json)


@app.command
def merge(
    sets: list[Path],
    *,
    codec: Literal["plain", "compact"] | None = None,
    on_duplicate: Literal["refuse", "first"] = "refuse",
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Make one label set of several of the same teacher, labeled in the same way.

    Shards stay shards, and every row is compared with its source. The sources are not touched. Can
    be stopped and run again.

    Example: `labeler merge ./labels-a ./labels-b ./labels`

    Parameters
    ----------
    sets
        Folders of two or more complete label sets, or views; last, the folder of the new set.
    codec
        Codec of the new set; by default that of the first.
    on_duplicate
        Where a row's id, chunk and sample occur in several sets. refuse: say which, and stop.
        first: take the row of the set that is named first.
    as_json
        Print JSON on standard output.
    """
    from labeler.derived.merge import print_merge

    print_merge(sets[:-1], sets[-1], codec=codec, on_duplicate=on_duplicate, as_json=as_json)


@app.command
def export(
    labels: Path,
    file: Path,
    *,
    format: Literal["distillkit", "axolotl", "trl", "jsonl"],
    limit: int | None = None,
    lossy: bool = False,
    replace: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Write a label set, or the rows of a view, as a file that another tool reads.

    Says what the format has no place for. Beside FILE comes FILE.softshards.json: the teacher,
    the identity, the alignment and what was lost. docs/interchange.md has the formats.

    Example: `labeler export ./labels rows.parquet --format distillkit`

    Parameters
    ----------
    labels
        Folder of a complete label set, or a view of one.
    file
        The file to write: .parquet for distillkit and axolotl; .jsonl or .jsonl.zst for trl, jsonl.
    format
        distillkit: raw rows of DistillKit (token_ids, top_values). axolotl: the columns of its KD
        collator (target_token_ids, target_logprobs, target_mask). trl: prompt and completion as
        text, without soft labels. jsonl: everything, one object a row.
    limit
        Write so many rows at most.
    lossy
        Also write rows that would lose more than the format always does: another context for the
        student; for trl, labels in several stretches.
    replace
        Put the file in the place of one that is there.
    as_json
        Print what FILE.softshards.json says on standard output.
    """
    from labeler.interchange.export import print_export

    print_export(labels, file, format, limit=limit, lossy=lossy, replace=replace, as_json=as_json)


@app.command(name="import")
def import_(
    inputs: list[Path],
    *,
    out_dir: Annotated[Path | None, Parameter(name="--out")] = None,
    tokenizer: Path,
    teacher: str,
    dtype: str = "unknown",
    temperature: float = 1.0,
    format: Literal["distillkit", "axolotl", "jsonl"] | None = None,
    shift: int | None = None,
    kind: Literal["text", "answer", "thinking", "tool_call", "prompt"] = "text",
    allow: list[Literal["shift", "renormalised"]] | None = None,
    codec: Literal["plain", "compact"] = "plain",
    max_reject_share: float = 0.5,
    dry_run: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Make a label set of labels that another tool wrote.

    What the file does not say has to be stated, and what nobody knows is recorded as unknown. The
    actual tokens are looked for in the top-k: labels that stand one place off are refused. Rows
    that break a rule become rejects. Can be stopped and run again.

    Example: `labeler import rows.parquet --tokenizer ./teacher --teacher ./teacher --dry-run`,
    then the same with `--out ./labels`

    Parameters
    ----------
    inputs
        Files (.parquet, .jsonl, .jsonl.zst, .jsonl.gz) or folders of them.
    out_dir
        Folder of the new label set.
    tokenizer
        Folder of the tokenizer that the ids are of.
    teacher
        Folder of the checkpoint that made the labels, which is fingerprinted; else its name, or
        unknown.
    dtype
        What the teacher ran in, where you know it.
    temperature
        Temperature of the probabilities. It must be 1: a top-k at another cannot be turned back.
    format
        By default told by the columns. docs/interchange.md has them.
    shift
        The distribution at entry t is of the token at t + SHIFT. By default 1 for distillkit and
        axolotl; for jsonl 0, counted from the tokens in the spans.
    kind
        Kind of the spans, where the file does not say.
    allow
        What not to refuse: shift (labels that look shifted), renormalised (a top-k that adds up to
        1, so that the tail is lost). May be given several times.
    codec
        Codec of the set.
    max_reject_share
        Stop when more than this share of rows is bad.
    dry_run
        Show the first row as it would be understood, and write nothing.
    as_json
        Print JSON on standard output.
    """
    from labeler.interchange.dry_run import print_dry_run
    from labeler.interchange.importing import ImportSettings, print_import

    if temperature != 1:
        raise SoftshardsError(
            f"the probabilities are at temperature {temperature:g}: from a top-k alone those at 1 "
            "cannot be had",
            mend="get log-probabilities at temperature 1 from the teacher",
        )
    settings = ImportSettings(
        tokenizer=tokenizer,
        teacher=teacher,
        dtype=dtype,
        form=format,
        shift=shift,
        kind=kind,
        allow=tuple(allow or ()),
        codec=codec,
        max_reject_share=max_reject_share,
    )
    if dry_run:
        print_dry_run(inputs, settings, as_json=as_json)
        return
    if out_dir is None:
        raise SoftshardsError("there is no --out", mend="name the new set's folder, or --dry-run")
    print_import(inputs, out_dir, settings, as_json=as_json)


@app.command
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
        Folder of a label set; or a YAML file of `labeler label` settings (model, out, ...).
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
    from labeler.checks.comparison_report import print_comparison

    print_comparison(
        a, b, inputs or [], rows=rows, worst=worst, partial=allow_partial, as_json=as_json
    )


@app.command
def bench(
    model: list[str],
    *,
    labels: Path,
    out_file: Annotated[Path | None, Parameter(name="--out")] = None,
    sequences: int = 16,
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    repeats: int = 5,
    dtype: str = "float32",
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Measure how fast vLLM runs models: tokens/s of reading and of generating, same input for all.

    Each model runs in a process of its own. An --out file that already holds the same measurement
    is reused.

    Example: `labeler bench teacher=./teacher student=./student --labels ./labels`

    Parameters
    ----------
    model
        Folders of checkpoints, each as FOLDER or NAME=FOLDER.
    labels
        A label set, from which the input sequences are taken.
    out_file
        Write the figures to this JSON file, for `trainer report --bench`.
    sequences
        Sequences a measurement.
    prompt_tokens
        Tokens read a sequence.
    new_tokens
        Tokens generated a sequence.
    repeats
        Measurements a model; the best counts.
    dtype
        dtype to run all models in.
    as_json
        Print JSON on standard output.
    """
    from labeler.checks import benching

    workload = benching.Workload(
        labels=str(labels),
        sequences=sequences,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=repeats,
        dtype=dtype,
    )
    benching.print_bench(model, workload, out_file, as_json=as_json)


@app.command
def push(
    labels: Path,
    repo: str,
    *,
    licence: Annotated[str | None, Parameter(name=["--licence", "--license"])] = None,
    terms: str | None = None,
    teacher: str | None = None,
    private: bool = False,
    replace: bool = False,
    revision: str | None = None,
    endpoint: str | None = None,
    dry_run: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Publish a label set on the Hugging Face Hub, as a dataset with a card.

    The set is checked first, byte by byte. The same command goes on after an interruption, and
    sends nothing twice. Log in with `hf auth login`, or set HF_TOKEN.

    Example: `labeler push ./labels me/my-labels --licence cc-by-4.0 --terms TERMS.md --dry-run`

    Parameters
    ----------
    labels
        Folder of a complete label set.
    repo
        OWNER/NAME of the dataset repository; it is made where it is missing.
    licence
        Licence of the set, as the Hub spells it (apache-2.0, cc-by-4.0, other, ...), or unknown.
        Needed: nothing is guessed.
    terms
        Terms of the teacher's outputs: Markdown, or a file with it.
    teacher
        Public name of the teacher for the card; by default the last part of its path.
    private
        Make the repository private; one that is there and public is refused.
    replace
        Put the set in the place of the one that is there, or of its earlier state.
    revision
        Branch to push to; it is made where it is missing.
    endpoint
        URL of the Hub; by default HF_ENDPOINT.
    dry_run
        Check the set, print the card and what would be sent; send nothing.
    as_json
        Print JSON on standard output.
    """
    from labeler.sharing import push as hub
    from labeler.sharing.card import statement
    from labeler.sharing.place import Place

    stated = statement(licence, terms, teacher)
    place = Place(repo=repo, revision=revision, endpoint=endpoint)
    shared, card = hub.push(
        labels, place, stated, private=private, replace=replace, dry_run=dry_run
    )
    if as_json:
        print(json.dumps(dataclasses.asdict(shared) | {"card": card}))
    elif dry_run:
        print(card)
        visibility = "private" if private else "public"
        err.print(f"would go to {shared.url} ({visibility} if it is new): {shared.sentence()}")
    else:
        out.print(f"pushed to {shared.url} at {shared.commit}: {shared.sentence()}", markup=False)


@app.command
def pull(
    repo: str,
    out_dir: Annotated[Path, Parameter(name="OUT")],
    *,
    replace: bool = False,
    revision: str | None = None,
    endpoint: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Download a label set from the Hugging Face Hub, and check every byte of it.

    The same command goes on after an interruption.

    Example: `labeler pull someone/their-labels ./labels`

    Parameters
    ----------
    repo
        OWNER/NAME of the dataset repository.
    out_dir
        A new folder, or one that the same set was pulled into before.
    replace
        Put the set in the place of another, or of an earlier state, that was pulled into OUT.
    revision
        Branch, tag or commit.
    endpoint
        URL of the Hub; by default HF_ENDPOINT.
    as_json
        Print JSON on standard output.
    """
    from labeler.sharing import pull as hub
    from labeler.sharing.place import Place

    place = Place(repo=repo, revision=revision, endpoint=endpoint)
    shared = hub.pull(out_dir, place, replace=replace)
    if as_json:
        print(json.dumps(dataclasses.asdict(shared)))
    else:
        where = f"{shared.url} at {shared.commit}"
        out.print(f"{shared.path}: pulled from {where}, good: {shared.sentence()}", markup=False)


@app.command
def artifact(
    labels: Path,
    *,
    to: Literal["wandb", "trackio"],
    project: str,
    name: str | None = None,
    alias: list[str] | None = None,
    upload: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Log a label set as an artifact of an experiment tracker, with the sets it was made from.

    The set is checked first, byte by byte. Its files stay where they are: the artifact has their
    places and hashes, unless --upload is given. Needs softshards[trackers].

    Example: `WANDB_MODE=offline labeler artifact ./labels --to wandb --project students`

    Parameters
    ----------
    labels
        Folder of a complete label set.
    to
        The tracker. Where it writes is up to its own settings (WANDB_MODE, TRACKIO_DIR, ...).
    project
        Project of the tracker.
    name
        Name of the artifact; by default the folder's.
    alias
        Another name of this version, beside manifest-DIGEST; may be given several times.
    upload
        Hand the files over to the tracker, instead of references to them.
    as_json
        Print JSON on standard output.
    """
    from labeler.sharing.artifacts import log_artifact

    logged = log_artifact(
        labels, to=to, project=project, name=name, aliases=tuple(alias or ()), upload=upload
    )
    if as_json:
        print(json.dumps(dataclasses.asdict(logged)))
        return
    how = "uploaded" if logged.uploaded else "referenced"
    names = ", ".join(logged.aliases)
    where = f"{logged.to}, project {logged.project}, run {logged.run}"
    out.print(f"{logged.name} ({names}): {logged.files} files {how}, {where}", markup=False)
    for parent in logged.parents:
        out.print(f"made from {parent}", markup=False)
    for parent in logged.unknown_parents:
        out.print(
            f"made from {parent}: {logged.to} could not look it up, so it is in the metadata only",
            markup=False,
        )


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
    if config is not None:
        if not config.is_file():
            raise SoftshardsError("no such file", path=config, mend="check --config")
        app.config = (
            cyclopts.config.Yaml(config, use_commands_as_keys=False, search_parents=False),
        )
    # cyclopts takes a lone `-` for an option.
    before = ("", *tokens)
    app([STDIN if t == "-" and not b.startswith("-") else t for b, t in zip(before, tokens)])


def main() -> None:
    """Entry point: errors a user can act on are one message, never a traceback."""
    try:
        app.meta()
    except SoftshardsError as error:
        err.print(f"error: {error}", style="red", markup=False)
        sys.exit(2)
    except KeyboardInterrupt as error:
        err.print("interrupted; what was finished is safe, the same command goes on from there")
        sys.exit(getattr(error, "exit_code", 130))
