"""The origin of an imported file, as the user states it; the rest is recorded as unknown."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypedDict

from schemas.errors import SoftshardsError, first_line
from schemas.fingerprint import sha256_json, tokenizer_digest, weights_digest
from schemas.json_values import read_object
from schemas.manifest import Identity

UNKNOWN = "unknown"


class _TeacherDigests(TypedDict):
    weights: str
    weights_scope: Literal["full", "stated"]
    model_config_digest: str


@dataclass(frozen=True, kw_only=True)
class StatedSource:
    """The user's statement about a file's labels.

    Attributes:
        tokenizer: folder of the tokenizer that made the ids.
        teacher: folder of the checkpoint that made the labels, or its name.
        dtype: dtype that the teacher ran in.
        format: the file's format.
    """

    tokenizer: Path
    teacher: str
    dtype: str
    format: str

    @property
    def checkpoint(self) -> Path | None:
        """The teacher's folder; None if the teacher is stated by name."""
        path = Path(self.teacher)
        return path if (path / "config.json").is_file() else None

    @property
    def facts(self) -> dict[str, str]:
        """The statement as the manifest records it."""
        return {"teacher": self.teacher, "dtype": self.dtype}

    def identity(self, *, vocab_size: int, k: int, max_length: int) -> Identity:
        """Return the identity of labels about which only this is known.

        `rendering` names the import, so that such a set never passes for one that the labeler made:
        the rendering of its text is unknown.

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
            rendering={"imported": self.format},
        )

    @cached_property
    def tokenizer_digest(self) -> str:
        """Digest of the tokenizer.

        Raises:
            SoftshardsError: the folder has none.
        """
        try:
            return tokenizer_digest(self.tokenizer)
        except (FileNotFoundError, ValueError) as error:
            raise SoftshardsError(
                f"no tokenizer: {error}", path=self.tokenizer, hint="check --tokenizer"
            ) from error

    def _teacher_digests(self) -> _TeacherDigests:
        folder = self.checkpoint
        if folder is None:
            stated = sha256_json({"stated": {"teacher": self.teacher}})
            return {"weights": stated, "weights_scope": "stated", "model_config_digest": stated}
        self._require_same_tokenizer(folder)
        try:
            weights = weights_digest(folder)
        except FileNotFoundError as error:
            raise SoftshardsError(
                f"no weights: {error}", path=folder, hint="give the teacher by name"
            ) from error
        config = read_object(folder / "config.json")
        return {
            "weights": weights,
            "weights_scope": "full",
            "model_config_digest": sha256_json(config),
        }

    def _require_same_tokenizer(self, folder: Path) -> None:
        try:
            same = tokenizer_digest(folder) == self.tokenizer_digest
        except FileNotFoundError:
            return  # the folder holds weights only
        except ValueError as error:
            what = f"its tokenizer cannot be read: {first_line(error)}"
            raise SoftshardsError(what, path=folder) from error
        if not same:
            raise SoftshardsError(
                "the teacher's tokenizer differs from --tokenizer",
                path=folder,
                hint="give the folders of one model, or the teacher by name",
            )
