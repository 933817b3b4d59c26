"""Token ids to text in Polars, with whatever tokenizer the user has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from schemas import positions
from schemas.errors import SoftshardsError

Tokenizer = str | Path | Callable[[list[int]], str] | Any
"""`tokenizer.json` or a folder with it, a function of a list of ids, or an object with `decode`."""


def reader(tokenizer: Tokenizer) -> Callable[[list[int]], str]:
    """A function from a list of ids to their text.

    Raises:
        SoftshardsError: there is no such file, or it is no tokenizer.
    """
    if isinstance(tokenizer, str | Path):
        return _load(Path(tokenizer))
    decode = getattr(tokenizer, "decode", tokenizer)
    if not callable(decode):
        raise SoftshardsError(
            f"{type(tokenizer).__name__} is no tokenizer",
            hint="give the path of a tokenizer.json, an object with `decode`, or a function",
        )
    return decode


def _load(path: Path) -> Callable[[list[int]], str]:
    from tokenizers import Tokenizer as FastTokenizer

    file = path / "tokenizer.json" if path.is_dir() else path
    hint = (
        "a label set has it in its folder tokenizer/; for another kind of tokenizer give a function"
    )
    if not file.is_file():
        raise SoftshardsError("there is no tokenizer.json", path=file, hint=hint)
    try:
        loaded = FastTokenizer.from_file(str(file))
    except Exception as error:  # what tokenizers raises for a file that is not one
        raise SoftshardsError(
            f"this is no tokenizer.json: {error}", path=file, hint=hint
        ) from error
    return lambda ids: loaded.decode(ids, skip_special_tokens=False)


def texts(ids: pl.Series, text: Callable[[list[int]], str]) -> pl.Series:
    """Text of each id, in lists like theirs (of any depth). Each id is decoded once."""
    if isinstance(ids.dtype, pl.List):
        inner = texts(ids.explode(empty_as_null=False, keep_nulls=False), text)
        return positions.listed(inner, ids.list.len().fill_null(0), ids.is_not_null())
    known = ids.drop_nulls().unique()
    if known.is_empty():
        return ids.cast(pl.String)
    words = pl.Series([text([i]) for i in known.to_list()], dtype=pl.String)
    return ids.replace_strict(known, words, return_dtype=pl.String)
