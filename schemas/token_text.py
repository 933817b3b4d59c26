"""Decode token ids in Polars, with any tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import polars as pl

from schemas.errors import SoftshardsError
from schemas.polars_positions import in_lists

Decode = Callable[[list[int]], str]
"""A function from a list of ids to their text."""


class Decoder(Protocol):
    """A tokenizer as `decode` needs it, such as one of transformers."""

    def decode(self, ids: list[int], /) -> str:
        """Return the text of ids."""


Tokenizer = str | Path | Decode | Decoder
"""A `tokenizer.json` or its folder, a function of a list of ids, or an object with `decode`."""


def open_decoder(tokenizer: Tokenizer) -> Decode:
    """Return the function that decodes a list of ids.

    Raises:
        SoftshardsError: the file is missing, or this is not a tokenizer.
    """
    if isinstance(tokenizer, str | Path):
        return _load(Path(tokenizer))
    decode = getattr(tokenizer, "decode", tokenizer)
    if not callable(decode):
        raise SoftshardsError(
            f"{type(tokenizer).__name__} is not a tokenizer",
            hint="give the path of a tokenizer.json, an object with `decode`, or a function",
        )
    function: Decode = decode
    return function


def _load(path: Path) -> Decode:
    from tokenizers import Tokenizer as FastTokenizer

    file = path / "tokenizer.json" if path.is_dir() else path
    hint = "a label set has one in its folder tokenizer/; for other tokenizers, give a function"
    if not file.is_file():
        raise SoftshardsError("tokenizer.json is missing", path=file, hint=hint)
    try:
        loaded = FastTokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise SoftshardsError(f"not a tokenizer.json: {error}", path=file, hint=hint) from error

    def decode(ids: list[int]) -> str:
        text: str = loaded.decode(ids, skip_special_tokens=False)
        return text

    return decode


def decode_ids(ids: pl.Series, decode: Decode) -> pl.Series:
    """Return the text of each id, in lists like the ids' (of any depth). Decodes each id once."""
    if isinstance(ids.dtype, pl.List):
        inner = decode_ids(ids.explode(empty_as_null=False, keep_nulls=False), decode)
        return in_lists(inner, ids.list.len().fill_null(0), ids.is_not_null())
    known = ids.drop_nulls().unique()
    if known.is_empty():
        return ids.cast(pl.String)
    words = pl.Series([decode([i]) for i in known.to_list()], dtype=pl.String)
    return ids.replace_strict(known, words, return_dtype=pl.String)
