"""The files of an import: their layout, the alignment of their labels, and their tail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from labeler.labelsets.exchange.check_row import (
    IMPORTED_TAIL,
    RECORDED,
    UNKNOWN_TOKEN,
)
from labeler.labelsets.exchange.convert_rows import (
    ImportCounts,
    RowLayout,
    source_names,
)
from labeler.labelsets.exchange.exchange_config import ImportConfig
from labeler.labelsets.exchange.exchange_formats import FORMATS
from labeler.labelsets.exchange.fast_tokenizer import load_tokenizer
from labeler.labelsets.exchange.position_check import require_alignment
from labeler.labelsets.exchange.read_rows import find_files, recognize_format
from labeler.labelsets.exchange.source_identity import StatedSource


@dataclass(frozen=True, kw_only=True)
class ImportSource:
    """The files of an import.

    Attributes:
        files: the files, in order.
        names: the source that rows record of each file.
        layout: the layout of their rows.
        stated: the user's statement about them.
    """

    files: Sequence[Path]
    names: Sequence[str]
    layout: RowLayout
    stated: StatedSource


def open_source(config: ImportConfig) -> ImportSource:
    """Find the files, and determine the layout of their rows.

    Raises:
        SoftshardsError: no file is found, the files hold no labels, or the tokenizer is missing.
    """
    files = find_files(config.inputs)
    format = config.format or recognize_format(files)
    layout = RowLayout(
        format=format,
        shift=FORMATS[format].shift if config.shift is None else config.shift,
        kind=config.kind,
        vocab_size=len(load_tokenizer(config.tokenizer)),
    )
    stated = StatedSource(
        tokenizer=config.tokenizer, teacher=config.teacher, dtype=config.dtype, format=format
    )
    names = source_names(files, config.inputs)
    return ImportSource(files=files, names=names, layout=layout, stated=stated)


def check_alignment(source: ImportSource, config: ImportConfig, counts: ImportCounts) -> None:
    """Refuse labels that look shifted or renormalized, unless the settings allow it.

    Raises:
        SoftshardsError: as `require_alignment`.
    """
    require_alignment(counts.evidence, source.files[0], source.layout.shift, config.allowed)


def describe_tail(counts: ImportCounts) -> str:
    """Return the `tail_source` of the shards, with a note on unknown token logprobs."""
    tail = IMPORTED_TAIL if counts.derived_tail else RECORDED
    if counts.own_tail and counts.derived_tail:
        tail = f"{RECORDED}, else {IMPORTED_TAIL}"
    if counts.evidence.renormalized:
        tail = f"{tail}; the file's top-k add up to 1, so that this is a floor and no tail"
    return f"{tail}; {UNKNOWN_TOKEN}" if counts.unknown_tokens else tail
