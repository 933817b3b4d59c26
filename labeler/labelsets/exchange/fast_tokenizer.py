"""The fast tokenizer of a folder, without transformers, which takes seconds to import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from schemas.errors import SoftshardsError


def load_tokenizer(directory: Path) -> Any:
    """The fast tokenizer of a folder, without truncation and padding.

    Raises:
        SoftshardsError: there is none, or it cannot be read.
    """
    from tokenizers import Tokenizer

    file = directory / "tokenizer.json"
    if not file.is_file():
        raise SoftshardsError(
            "there is no tokenizer.json",
            path=directory,
            hint="give the folder of a fast tokenizer, such as the teacher's checkpoint",
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise SoftshardsError(f"not a tokenizer: {error}", path=file) from error
    tokenizer.no_truncation()  # a file may have been saved with both
    tokenizer.no_padding()
    return tokenizer
