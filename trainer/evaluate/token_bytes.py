"""Count the bytes of text that each token stands for, from a `tokenizer.json`."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, pre_tokenizers

from schemas.errors import SoftshardsError, first_line, is_failure
from schemas.json_values import parse_object

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""A byte that SentencePiece vocabularies fall back to."""
SPACE = "▁"
"""The sign for a space in SentencePiece vocabularies."""


def token_bytes(tokenizer_dir: Path, vocab_size: int) -> NDArray[np.int64] | None:
    """Return the bytes of each id's text in UTF-8: [vocab_size].

    Special tokens, and ids without a token, have 0: they are no part of a text. Tokens that were
    added to the vocabulary and are not special (`<think>`) have those of their name.

    Returns:
        None if the tokens do not tell: there is no `tokenizer.json`, or its decoder is neither that
        of a byte-level vocabulary (GPT-2, Llama 3, Qwen) nor of SentencePiece (Llama 2, Gemma).
        WordPiece, for example, drops the spaces.

    Raises:
        SoftshardsError: the file cannot be loaded.
    """
    file = tokenizer_dir / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        steps = _decoder_steps(parse_object(file.read_bytes()).get("decoder"))
        tokenizer = Tokenizer.from_file(str(file))
    except BaseException as error:  # tokenizers raises nothing narrower, and panics in Rust
        if not is_failure(error):
            raise
        what = f"the tokenizer cannot be loaded: {first_line(error)}"
        raise SoftshardsError(what, path=file) from error
    added = tokenizer.get_added_tokens_decoder()
    if "ByteLevel" in steps:
        alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    elif steps & {"ByteFallback", "Metaspace"}:
        alphabet = None
    else:
        return None
    found = np.zeros(vocab_size, np.int64)
    for token, number in tokenizer.get_vocab(with_added_tokens=True).items():
        if number >= vocab_size:
            continue
        if number in added:
            found[number] = 0 if added[number].special else len(added[number].content.encode())
        elif alphabet is not None:
            # Each character stands for a byte; one outside the alphabet stands for itself.
            found[number] = sum(1 if c in alphabet else len(c.encode()) for c in token)
        elif BYTE_TOKEN.fullmatch(token):
            found[number] = 1
        else:
            found[number] = len(token.replace(SPACE, " ").encode())
    return found


def _decoder_steps(decoder: object) -> set[str]:
    """Return the types of a decoder and of the decoders in it."""
    if not isinstance(decoder, dict):
        return set()
    parts = decoder.get("decoders")
    inner = parts if isinstance(parts, list) else []
    return {str(decoder.get("type"))}.union(*(_decoder_steps(part) for part in inner))
