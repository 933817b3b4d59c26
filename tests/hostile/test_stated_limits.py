"""Limits that docs/security.md states are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from labeler.labeling.inputs import packed_stream, record_limits
from labeler.labeling.teacher import template_process
from labeler.labelsets.view import server
from schemas import index, parquet_sizes, size_limits
from trainer.data import distributions

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
FREE = packed_stream.FREE_EXPANSION >> 20
ENCODINGS = {0: "PLAIN", 2: "dictionary", 3: "RLE", 8: "dictionary", 9: "BYTE_STREAM_SPLIT"}
CELLS = f"{size_limits.CELLS} per stored byte"
CHAT = template_process


def stated() -> list[str]:
    """Return the sentences of docs/security.md that state a limit, from the code's constants."""
    base = size_limits.base_bytes()
    return [
        f"a plan | {base >> 20} MB + {size_limits.EXPANSION} bytes per stored byte |",
        f"| {base // size_limits.BYTES_PER_CELL:,} ids + {CELLS} of the row group |",
        f"| {index.SPARE_ROWS:,} + 1 per {size_limits.INDEX_ROW_BYTES} bytes of its pages |",
        f"ids of a vocabulary | {size_limits.LARGEST_VOCABULARY:,} |",
        f"units of a set | {size_limits.LARGEST_UNITS:,} |",
        f"dimensions of a hidden state | {size_limits.LARGEST_WIDTH:,} |",
        f"bytes | 2^{size_limits.LARGEST_COUNT.bit_length() - 1} |",
        f"`{size_limits.SIZE_LIMIT}` replaces the {base >> 20} MB",
        f"limited in depth ({record_limits.MOST_NESTED})",
        f"objects per record ({record_limits.MOST_CONTAINERS:,})",
        f"may be {base >> 20} MB + {size_limits.EXPANSION} bytes per stored byte",
        f"may expand {packed_stream.MOST_EXPANSION} times, after {FREE} MB",
        f"window of zstd may be {packed_stream.LARGEST_WINDOW >> 30} GB",
        f"dictionary of xz {packed_stream.LARGEST_DICTIONARY >> 20} MB",
        f"{CHAT.SECONDS:g} s and {CHAT.MOST_TEXT:,} characters per chat",
        f"{CHAT.TOTAL_SECONDS:g} s in all, {CHAT.MEMORY >> 30} GB of memory",
        f"at most {server.MOST_CONNECTIONS} connections",
        f"and waits {server.HEAD_SECONDS:g} s for a request",
        f"within {distributions.LARGEST_SHIFT:g} nats",
    ]


@pytest.mark.parametrize("text", stated())
def test_a_limit_is_stated_as_it_is(text: str) -> None:
    words = re.sub(r"\s+", " ", PAGE.read_text())
    assert text in words


def test_the_encodings_of_pages_are_stated() -> None:
    assert set(ENCODINGS) == parquet_sizes.PLAIN_ENCODINGS
    stated = re.search(r"encodings of pages \| (.*) \|", PAGE.read_text())
    assert stated is not None
    assert set(stated[1].split(", ")) == set(ENCODINGS.values())
