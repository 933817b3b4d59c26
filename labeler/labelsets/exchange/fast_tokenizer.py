"""Open the `tokenizer.json` of a folder, or say why it cannot be used."""

from __future__ import annotations

from pathlib import Path

from labeler.labelsets.common.tokenizer_file import (
    TOKENIZER_JSON,
    TokenizerFile,
    as_tokenizer_errors,
)
from schemas.errors import SoftshardsError


def load_tokenizer(directory: Path) -> TokenizerFile:
    """Return the fast tokenizer of a folder.

    Raises:
        SoftshardsError: the file is missing, or cannot be read.
    """
    file = directory / TOKENIZER_JSON
    if not file.is_file():
        raise SoftshardsError(
            f"{TOKENIZER_JSON} is missing",
            path=directory,
            hint="give the folder of a fast tokenizer, such as the teacher's checkpoint",
        )
    with as_tokenizer_errors(directory):
        return TokenizerFile(file)
