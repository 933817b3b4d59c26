"""`labeler import`: make a label set from labels that another tool wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from labeler.console import err, human_bytes, out, progress
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.teacher.tokenizer_files import copy_tokenizer
from labeler.labeling.writing.set_place import SetPlace, open_place
from labeler.labelsets.derive.derived_writer import write_derived
from labeler.labelsets.exchange.batcher import Batcher
from labeler.labelsets.exchange.check_row import (
    DERIVED_ENTROPY,
    RECORDED,
    UNKNOWN_TOKEN,
)
from labeler.labelsets.exchange.convert_rows import (
    ImportCounts,
    convert_rows,
)
from labeler.labelsets.exchange.exchange_config import ImportConfig
from labeler.labelsets.exchange.import_dry_run import print_dry_run
from labeler.labelsets.exchange.import_source import (
    ImportSource,
    check_alignment,
    describe_tail,
    open_source,
)
from labeler.labelsets.exchange.import_spool import Spool
from schemas.errors import SoftshardsError
from schemas.fingerprint import sha256_file
from schemas.manifest import MANIFEST, Manifest, read_manifest
from schemas.redact import redacted
from schemas.version import CODECS


def run_import(config: ImportConfig) -> int:
    """Import, and print a summary; with `dry_run`, print how the first row is read.

    Raises:
        SoftshardsError: as `import_labels`.
    """
    if config.dry_run:
        print_dry_run(config)
        return 0
    assert config.out_dir is not None, "ImportConfig requires it without a dry run"
    manifest = import_labels(config, config.out_dir)
    totals = manifest.totals
    assert totals is not None, "write_derived closes the set"
    facts = {
        "out": redacted(str(config.out_dir)),
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
    if config.as_json:
        print(json.dumps(facts))
        return 0
    out.print(
        f"{facts['out']}: {totals.rows} rows, {totals.labels} labels of at most {facts['k']} ids "
        f"from format {facts['format']}, {human_bytes(totals.bytes)}; {totals.rejects} rejects",
    )
    out.print(f"tail: {facts['tail_source']}")
    if unknown := facts["unknown_token_logprobs"]:
        out.print(f"{unknown} of {totals.labels} labels: {UNKNOWN_TOKEN}")
    if totals.rejects:
        out.print(f"see `labeler inspect {facts['out']} --rejects`")
    return 0


def import_labels(config: ImportConfig, out: Path | str) -> Manifest:
    """Write the files of another tool as a label set; reuse a finished import of the same files.

    All rows are read and checked first, into a temporary file beside the set, and then written. A
    killed import reads its files again.

    Raises:
        SoftshardsError: the files contradict the statement about them, too many rows are bad, or
            `out` holds another set.
    """
    source = open_source(config)
    with open_place(out) as place:
        return _import(source, config, place)


def _import(source: ImportSource, config: ImportConfig, place: SetPlace) -> Manifest:
    derived = _derived_facts(source, config)
    if (finished := _finished_import(place.folder, derived)) is not None:
        err.print(f"{place.name} holds this import, finished; nothing to do")
        return finished
    counts = ImportCounts()
    spool = Spool(place.folder.parent, source.layout.vocab_size, LabelConfig.unit_labels)
    _spool_rows(source, config, counts, spool)
    tail = describe_tail(counts)
    units = spool.units(tail, DERIVED_ENTROPY if counts.derived_entropy else RECORDED)
    if not units:
        raise SoftshardsError("all rows were rejected", path=source.files[0])
    return write_derived(
        place,
        units,
        identity=source.stated.identity(
            vocab_size=source.layout.vocab_size, k=counts.k, max_length=counts.longest
        ),
        codec=CODECS[config.codec],
        derived=derived,
        copy_tokenizer=lambda folder: copy_tokenizer(config.tokenizer, folder),
        provenance={
            "teacher": config.teacher,
            "tail_source": tail,
            "unknown_token_logprobs": counts.unknown_tokens,
            "actual_token_in_top_k": counts.evidence.shares_by_shift(source.layout.shift),
        },
    )


def _spool_rows(
    source: ImportSource, config: ImportConfig, counts: ImportCounts, spool: Spool
) -> None:
    """Read all rows into the spool.

    Raises:
        SoftshardsError: too many rows are bad, or the labels look shifted or renormalized.
    """
    batcher = Batcher(spool, source.layout.vocab_size, config.max_reject_share)
    checked = False
    with progress("rows") as bar:
        task = bar.add_task("reading", total=None)
        for path, name in zip(source.files, source.names, strict=True):
            for item in convert_rows(path, name, source.layout, counts):
                batcher.add(item)
                bar.advance(task)
                if counts.evidence.suffices and not checked:
                    check_alignment(source, config, counts)
                    checked = True
    batcher.finish()
    if not checked:
        check_alignment(source, config, counts)


def _derived_facts(source: ImportSource, config: ImportConfig) -> dict[str, Any]:
    """Return what the manifest records of the import; a set made with the same is this import."""
    return {
        "how": "import",
        "from": [
            {"name": name, "sha256": sha256_file(path)}
            for path, name in zip(source.files, source.names, strict=True)
        ],
        "format": source.layout.format,
        "shift": source.layout.shift,
        "kind": source.layout.kind,
        "allow": sorted(config.allowed),
        "stated": source.stated.facts,
        "tokenizer": source.stated.tokenizer_digest,
    }


def _finished_import(out_dir: Path, derived: dict[str, Any]) -> Manifest | None:
    if not (out_dir / MANIFEST).exists():
        return None
    manifest = read_manifest(out_dir)
    same = manifest.provenance.get("derived") == derived
    return manifest if same and manifest.status == "complete" else None
