"""Who made an imported file, as far as the user says; what nobody says is recorded as unknown."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from schemas import Identity, SoftshardsError
from schemas.fingerprint import sha256_json, tokenizer_digest, weights_digest

UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What the user says of a file's labels.

    Attributes:
        tokenizer: folder of the tokenizer that made the ids.
        teacher: folder of the checkpoint that made the labels, or its name.
        dtype: what it ran in.
        form: the file's format.
    """

    tokenizer: Path
    teacher: str
    dtype: str
    form: str

    @property
    def folder(self) -> Path | None:
        """The teacher's checkpoint, where it is one."""
        path = Path(self.teacher)
        return path if (path / "config.json").is_file() else None

    @property
    def facts(self) -> dict[str, str]:
        """As the manifest has them."""
        return {"teacher": self.teacher, "dtype": self.dtype}

    def identity(self, *, vocab_size: int, k: int, max_length: int) -> Identity:
        """The identity of labels of which only this is known.

        `rendering` names the import, so that such a set is never taken for one that was labeled:
        how its text was rendered is not known.

        Raises:
            SoftshardsError: the teacher's folder has no weights, or another tokenizer.
        """
        return Identity(
            **self._teacher_digests(),
            tokenizer=self.tokenizer_digest,
            vocab_size=vocab_size,
            chat_template=None,
            dtype=self.dtype,
            head_dtype=UNKNOWN,
            mode="score",
            k=k,
            max_length=max_length,
            overlap=0,
            rendering={"imported": self.form},
        )

    @cached_property
    def tokenizer_digest(self) -> str:
        """Digest of the tokenizer.

        Raises:
            SoftshardsError: there is none in the folder.
        """
        try:
            return tokenizer_digest(self.tokenizer)
        except (FileNotFoundError, ValueError) as error:
            raise SoftshardsError(
                f"no tokenizer: {error}", path=self.tokenizer, hint="check --tokenizer"
            ) from error

    def _teacher_digests(self) -> dict[str, Any]:
        if self.folder is None:
            stated = sha256_json({"stated": {"teacher": self.teacher}})
            return {"weights": stated, "weights_scope": "stated", "model_config_digest": stated}
        try:
            if tokenizer_digest(self.folder) != self.tokenizer_digest:
                raise SoftshardsError(
                    "the teacher has another tokenizer than --tokenizer",
                    path=self.folder,
                    hint="give the folders of one model, or the teacher by name",
                )
        except FileNotFoundError:
            pass  # weights alone
        try:
            weights = weights_digest(self.folder)
        except FileNotFoundError as error:
            raise SoftshardsError(
                f"no weights: {error}", path=self.folder, hint="give the teacher by name"
            ) from error
        config = json.loads((self.folder / "config.json").read_bytes())
        return {"weights": weights, "model_config_digest": sha256_json(config)}
