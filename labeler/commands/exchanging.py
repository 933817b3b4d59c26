"""Commands that hand label sets on: `export`, `import`, `push`, `pull`, `artifact`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from labeler.console import err, out
from schemas import SoftshardsError


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
    from labeler.labelsets.exchange.export_set import print_export

    print_export(labels, file, format, limit=limit, lossy=lossy, replace=replace, as_json=as_json)


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
    allow: list[Literal["shift", "renormalized", "renormalised"]] | None = None,
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
        What not to refuse: shift (labels that look shifted), renormalized (a top-k that adds up to
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
    from labeler.labelsets.exchange.import_dry_run import print_dry_run
    from labeler.labelsets.exchange.import_set import ImportSettings, print_import

    if temperature != 1:
        raise SoftshardsError(
            f"the probabilities are at temperature {temperature:g}: from a top-k alone those at 1 "
            "cannot be had",
            hint="get log-probabilities at temperature 1 from the teacher",
        )
    settings = ImportSettings(
        tokenizer=tokenizer,
        teacher=teacher,
        dtype=dtype,
        form=format,
        shift=shift,
        kind=kind,
        allow=tuple(name.replace("alised", "alized") for name in allow or ()),
        codec=codec,
        max_reject_share=max_reject_share,
    )
    if dry_run:
        print_dry_run(inputs, settings, as_json=as_json)
        return
    if out_dir is None:
        raise SoftshardsError("there is no --out", hint="name the new set's folder, or --dry-run")
    print_import(inputs, out_dir, settings, as_json=as_json)


def push(
    labels: Path,
    repo: str,
    *,
    license: Annotated[str | None, Parameter(name=["--license", "--licence"])] = None,
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

    Example: `labeler push ./labels me/my-labels --license cc-by-4.0 --terms TERMS.md --dry-run`

    Parameters
    ----------
    labels
        Folder of a complete label set.
    repo
        OWNER/NAME of the dataset repository; it is made where it is missing.
    license
        License of the set, as the Hub spells it (apache-2.0, cc-by-4.0, other, ...), or unknown.
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
    from labeler.labelsets.hub import push as hub
    from labeler.labelsets.hub.dataset_card import statement
    from labeler.labelsets.hub.hub_repo import Place

    stated = statement(license, terms, teacher)
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


def pull(
    repo: str,
    out_dir: Annotated[Path, Parameter(name="--out")],
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
    from labeler.labelsets.hub import pull as hub
    from labeler.labelsets.hub.hub_repo import Place

    place = Place(repo=repo, revision=revision, endpoint=endpoint)
    shared = hub.pull(out_dir, place, replace=replace)
    if as_json:
        print(json.dumps(dataclasses.asdict(shared)))
    else:
        where = f"{shared.url} at {shared.commit}"
        out.print(f"{shared.path}: pulled from {where}, good: {shared.sentence()}", markup=False)


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
    from labeler.labelsets.hub.tracker_artifacts import log_artifact

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
