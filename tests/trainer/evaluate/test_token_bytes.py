"""Bytes per token, for the kinds of tokenizers that causal language models have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests.tiny_model import make_tokenizer
from trainer.evaluate.token_bytes import token_bytes

TEXT = "the cat — naïve 日本語 🙂\n\n  sat\t<think>on"


def sentence_piece() -> Tokenizer:
    """Llama 2's layout: a sign for spaces, bytes to fall back to."""
    pieces = ["<unk>", "<s>", "▁", "the", "▁the", "cat", "▁cat", "日", "ï", "a", "n", "v", "e", "s"]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<s>", "<unk>"])
    return tokenizer


def byte_level(folder: Path) -> Tokenizer:
    make_tokenizer(folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_bytes_of_the_tokens_are_those_of_the_text(tmp_path: Path, kind: str) -> None:
    tokenizer = byte_level(tmp_path) if kind == "bytes" else sentence_piece()
    special = "<eos>" if kind == "bytes" else "<s>"
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    found = token_bytes(tmp_path, size)
    assert found is not None
    ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    assert tokenizer.token_to_id("<think>") in ids
    assert found[ids].sum() == len(TEXT.encode())
    assert found[tokenizer.token_to_id(special)] == 0
    # Ids without a token have no bytes, and a table may be shorter than the vocabulary.
    longer, shorter = token_bytes(tmp_path, size + 5), token_bytes(tmp_path, 40)
    assert longer is not None
    assert shorter is not None
    assert longer[size:].tolist() == [0] * 5
    np.testing.assert_array_equal(longer[:size], found)
    np.testing.assert_array_equal(shorter, found[:40])


def test_bytes_are_unknown_where_tokens_do_not_tell(tmp_path: Path) -> None:
    assert token_bytes(tmp_path, 10) is None  # no tokenizer.json
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "cat": 1, "##s": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    for decoder in (decoders.WordPiece(), None):
        tokenizer.decoder = decoder
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        assert token_bytes(tmp_path, 3) is None
