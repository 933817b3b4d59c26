"""A label set's own tokenizer, opened without transformers where it is a `tokenizer.json`.

Importing transformers takes seconds, reading the file a fraction of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, cast

from tokenizers import Tokenizer

from schemas import SoftshardsError
from schemas.errors import first_line, is_failure

TOKENIZER_JSON = "tokenizer.json"


class TextTokenizer(Protocol):
    """The part of the transformers tokenizers that label sets need."""

    chat_template: str | None

    def __len__(self) -> int: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of token ids."""

    def batch_decode(
        self, sequences: list[list[int]], *, skip_special_tokens: bool = False
    ) -> list[str]:
        """Return the text of each row of token ids."""


class TokenizerFile:
    """A `tokenizer.json` behind the interface of transformers, without a chat template."""

    chat_template: str | None = None

    def __init__(self, file: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_truncation()  # the file may store both settings
        self._tokenizer.no_padding()

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of token ids."""
        with _as_id_error():
            text: str = self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def batch_decode(
        self, sequences: list[list[int]], *, skip_special_tokens: bool = False
    ) -> list[str]:
        """Return the text of each row of token ids, decoded in parallel."""
        with _as_id_error():
            texts: list[str] = self._tokenizer.decode_batch(
                sequences, skip_special_tokens=skip_special_tokens
            )
        return texts


@contextmanager
def _as_id_error() -> Iterator[None]:
    try:
        yield
    except OverflowError as error:  # of a set whose rows nobody checked
        raise SoftshardsError(
            "a token id is below 0 or too large", hint="`labeler verify` names the row"
        ) from error


def open_tokenizer(directory: Path) -> TextTokenizer:
    """Open the tokenizer of a folder: its `tokenizer.json`, or by transformers without one.

    Raises:
        SoftshardsError: it cannot be loaded, or it is code.
    """
    file = directory / TOKENIZER_JSON
    with as_tokenizer_errors(directory):
        return TokenizerFile(file) if file.is_file() else load_with_transformers(directory)


@contextmanager
def as_tokenizer_errors(directory: Path) -> Iterator[None]:
    """Turn what tokenizers and transformers raise about a folder's files into one error.

    Raises:
        SoftshardsError: the tokenizer cannot be loaded, or it is code.
    """
    try:
        yield
    except BaseException as error:  # tokenizers raises nothing narrower, and panics in Rust
        if not is_failure(error):
            raise
        what = f"the tokenizer cannot be loaded: {first_line(error)}"
        if "trust_remote_code" in str(error):
            what = "the tokenizer needs code of its own (`auto_map`), which is never run here"
        raise SoftshardsError(
            what,
            path=directory,
            hint="copy the tokenizer files again from the teacher's checkpoint",
        ) from error


def load_with_transformers(directory: Path) -> TextTokenizer:
    """Load the tokenizer of a folder by transformers, with its own class.

    Raises:
        ValueError: its class is code in the folder (`auto_map`), which comes from whoever made the
            set and never runs.
    """
    from transformers import AutoTokenizer

    # Without a value, transformers asks on the terminal.
    loaded = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    return cast(TextTokenizer, loaded)
