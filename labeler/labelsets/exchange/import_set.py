"""`labeler import`: labels that other tools wrote become a label set, as far as they can be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labeler.console import err, human_bytes, out, progress
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.teacher.tokenizer_files import copy_tokenizer
from labeler.labelsets.derive.derived_writer import write_derived
from labeler.labelsets.exchange.batcher import Gathering
from labeler.labelsets.exchange.convert_rows import Counts, Reading, names_of, take
from labeler.labelsets.exchange.exchange_formats import FORMATS
from labeler.labelsets.exchange.fast_tokenizer import load_tokenizer
from labeler.labelsets.exchange.import_spool import Spool
from labeler.labelsets.exchange.parse_row import (
    DERIVED_ENTROPY,
    IMPORTED_TAIL,
    STATED,
    UNKNOWN_TOKEN,
)
from labeler.labelsets.exchange.position_check import judge, shares
from labeler.labelsets.exchange.read_rows import find_files, format_of
from labeler.labelsets.exchange.source_identity import Stated
from schemas import Manifest, SoftshardsError
from schemas.fingerprint import sha256_file
from schemas.manifest import MANIFEST, read_manifest
from schemas.version import CODECS


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """What the user says.

    Attributes:
        tokenizer, teacher, dtype: see `Stated`.
        form: the format, or None to tell it by the columns.
        shift: see `read_foreign`; None for that of the format.
        kind: of spans, where rows do not say.
        allow: refusals that are not to be: `shift`, `renormalized`.
        codec: of the set.
        max_reject_share: largest share of bad rows.
    """

    tokenizer: Path
    teacher: str
    dtype: str = "unknown"
    form: str | None = None
    shift: int | None = None
    kind: str = "text"
    allow: tuple[str, ...] = ()
    codec: str = "plain"
    max_reject_share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files, what rows call them, and how they are to be read."""

    files: list[Path]
    names: list[str]
    reading: Reading
    stated: Stated


def open_source(inputs: Sequence[Path], settings: ImportSettings) -> Source:
    """Find the files, and say how they are to be read.

    Raises:
        SoftshardsError: there are none, they hold no labels, or there is no such tokenizer.
    """
    files = find_files(inputs)
    form = settings.form or format_of(files)
    shift = FORMATS[form].shift if settings.shift is None else settings.shift
    vocab_size = load_tokenizer(settings.tokenizer).get_vocab_size(with_added_tokens=True)
    return Source(
        files=files,
        names=names_of(files, inputs),
        reading=Reading(form=form, shift=shift, kind=settings.kind, vocab_size=vocab_size),
        stated=Stated(
            tokenizer=settings.tokenizer,
            teacher=settings.teacher,
            dtype=settings.dtype,
            form=form,
        ),
    )


def print_import(
    inputs: Sequence[Path], target: Path, settings: ImportSettings, *, as_json: bool
) -> None:
    """Import, and say what came of it.

    Raises:
        SoftshardsError: as `import_labels`.
    """
    manifest = import_labels(inputs, target, settings)
    totals = manifest.totals
    assert totals is not None, "write_derived closes the set"
    facts = {
        "out": str(target),
        "format": manifest.provenance["derived"]["format"],
        "codec": manifest.codec,
        "rows": totals.rows,
        "labels": totals.labels,
        "bytes": totals.bytes,
        "k": manifest.identity.k,
        "rejects": totals.rejects,
        "unknown_token_logprobs": manifest.provenance["unknown_token_logprobs"],
        "tail_source": manifest.provenance["tail_source"],
    }
    if as_json:
        print(json.dumps(facts))
        return
    out.print(
        f"{target}: {totals.rows} rows, {totals.labels} labels of at most {facts['k']} ids from "
        f"format {facts['format']}, {human_bytes(totals.bytes)}; {totals.rejects} rejects",
        markup=False,
    )
    out.print(f"tail: {facts['tail_source']}", markup=False)
    if unknown := facts["unknown_token_logprobs"]:
        out.print(f"{unknown} of {totals.labels} labels: {UNKNOWN_TOKEN}", markup=False)
    if totals.rejects:
        out.print(f"see `labeler inspect {target} --rejects`", markup=False)


def import_labels(inputs: Sequence[Path], target: Path, settings: ImportSettings) -> Manifest:
    """Read files of another tool into a label set; a finished import of the same is left alone.

    All rows are read and checked first, into a file beside the set that is gone in the end, and
    then written. The same command goes on after a kill, reading again.

    Raises:
        SoftshardsError: the files are not what they are said to be, too many rows are bad, or
            there is another set in `target`.
    """
    source = open_source(inputs, settings)
    derived = _derived(source, settings)
    if (found := _finished(target, derived)) is not None:
        err.print(f"{target} is this import, finished; nothing to do", markup=False)
        return found
    counts = Counts()
    spool = Spool(target.parent, source.reading.vocab_size, LabelConfig.unit_labels)
    gather(source, settings, counts, spool)
    tail = tail_source(counts)
    units = spool.units(tail, STATED if not counts.derived_entropy else DERIVED_ENTROPY)
    if not units:
        raise SoftshardsError("no row is left to import", path=source.files[0])
    return write_derived(
        target,
        units,
        identity=source.stated.identity(
            vocab_size=source.reading.vocab_size, k=counts.k, max_length=counts.longest
        ),
        codec=CODECS[settings.codec],
        derived=derived,
        copy_tokenizer=lambda folder: copy_tokenizer(settings.tokenizer, folder),
        provenance={
            "teacher": settings.teacher,
            "tail_source": tail,
            "unknown_token_logprobs": counts.unknown_tokens,
            "actual_token_in_top_k": shares(counts.evidence, source.reading.shift),
        },
    )


def gather(source: Source, settings: ImportSettings, counts: Counts, spool: Spool) -> None:
    """Read all rows into the spool.

    Raises:
        SoftshardsError: too many are bad, or the labels do not stand where they are said to.
    """
    gathering = Gathering(spool, source.reading.vocab_size, settings.max_reject_share)
    judged = False
    with progress("rows") as bar:
        task = bar.add_task("reading", total=None)
        for path, name in zip(source.files, source.names, strict=True):
            for item in take(path, name, source.reading, counts):
                gathering.take(item)
                bar.advance(task)
                if counts.evidence.enough and not judged:
                    judge(counts.evidence, source.files[0], source.reading.shift, settings.allow)
                    judged = True
    gathering.finish()
    if not judged:
        judge(counts.evidence, source.files[0], source.reading.shift, settings.allow)


def tail_source(counts: Counts) -> str:
    """What shards are to say of their tails, and of what goes with them."""
    tail = STATED if not counts.derived_tail else IMPORTED_TAIL
    if counts.own_tail and counts.derived_tail:
        tail = f"{STATED}, else {IMPORTED_TAIL}"
    if counts.evidence.renormalized:
        tail = f"{tail}; the file's top-k add up to 1, so that this is a floor and no tail"
    return f"{tail}; {UNKNOWN_TOKEN}" if counts.unknown_tokens else tail


def _derived(source: Source, settings: ImportSettings) -> dict[str, Any]:
    return {
        "how": "import",
        "from": [
            {"name": name, "sha256": sha256_file(path)}
            for path, name in zip(source.files, source.names, strict=True)
        ],
        "format": source.reading.form,
        "shift": source.reading.shift,
        "kind": source.reading.kind,
        "allow": sorted(settings.allow),
        "stated": source.stated.facts,
        "tokenizer": source.stated.tokenizer_digest,
    }


def _finished(target: Path, derived: dict[str, Any]) -> Manifest | None:
    if not (target / MANIFEST).exists():
        return None
    manifest = read_manifest(target)
    same = manifest.provenance.get("derived") == derived
    return manifest if same and manifest.status == "complete" else None
