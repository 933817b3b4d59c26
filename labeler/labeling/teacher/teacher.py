"""The teacher as a folder on disk: its tokenizer and configuration; no weights are loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labeler.console import err
from labeler.labeling.teacher.checkpoint_facts import (
    ChatTemplate,
    CheckpointFacts,
    remembered_facts,
)
from labeler.labeling.teacher.teacher_config import (
    GENERATION,
    generation_stop_ids,
    model_context,
    model_dtype,
    own_code,
)
from labeler.labeling.teacher.template_clock import TemplateClock
from labeler.labeling.teacher.template_process import LimitedTemplates
from schemas import SoftshardsError
from schemas.errors import first_line, is_failure
from schemas.hub_model import ModelSource

if TYPE_CHECKING:
    from tokenizers import Tokenizer


CHECKPOINT = (
    "give the folder of a Hugging Face causal LM with config.json, weights and tokenizer, or "
    "OWNER/NAME of a model on the Hub"
)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A checkpoint whose weights are not loaded, and whose tokenizer is loaded when it is needed.

    Attributes:
        path: its folder.
        load_tokenizer: returns the transformers tokenizer, always the same one.
        chat_template: the tokenizer's chat template, or several by name, if it has any.
        vocab_size: number of real token ids.
        context: longest sequence that the model supports, in tokens.
        dtype: the checkpoint's dtype, by torch's name.
        stop_ids: token ids that end a generation.
        trust_code: the checkpoint's own code may run.
        source: where the folder comes from, if `--model` named it in another way.
        clock: the time that the chat template prints; by default now.
        renderer: renders chat templates under limits; None: as a part of this process.
        layers: number of decoder layers; width: of a hidden state; None where it is not known.
    """

    path: Path
    load_tokenizer: Callable[[], Any]
    chat_template: ChatTemplate | None
    vocab_size: int
    context: int
    dtype: str
    stop_ids: tuple[int, ...]
    source: ModelSource | None = None
    trust_code: bool = False
    clock: TemplateClock | None = None
    renderer: LimitedTemplates | None = None
    layers: int | None = None
    width: int | None = None

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer, which has no types."""
        return self.load_tokenizer()

    @property
    def eos_id(self) -> int:
        """The id of the tokenizer's EOS token.

        Raises:
            SoftshardsError: the tokenizer has none.
        """
        eos: int | None = self.tokenizer.eos_token_id
        if eos is None:
            raise SoftshardsError(
                "the tokenizer has no EOS token", path=self.path, hint="leave out --append-eos"
            )
        return eos

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """Tokens that are markup rather than text."""
        added = self.tokenizer.added_tokens_decoder.values()
        return tuple(token.content for token in added if token.special)

    @cached_property
    def stop_tokens(self) -> tuple[str, ...]:
        """The tokens of `stop_ids` as text."""
        return tuple(self.tokenizer.convert_ids_to_tokens(list(self.stop_ids)))

    def encode(self, text: str) -> list[int]:
        """Encode a text that starts a sequence, with a single BOS if the tokenizer adds one."""
        ids: list[int] = self.tokenizer.encode(text)
        bos = self.tokenizer.bos_token_id
        twice = bos is not None and ids[:2] == [bos, bos]  # the text began with one too
        return ids[1:] if twice else ids

    def encode_prompt(self, text: str) -> list[int]:
        """Encode a text that starts a sequence and will be continued: without an added EOS."""
        ids, plain = self.encode(text), self.encode_continuation(text)
        added = ids[len(ids) - len(plain) - 1 :] == [*plain, self.tokenizer.eos_token_id]
        return ids[:-1] if added and len(ids) > len(plain) else ids

    def encode_continuation(self, text: str) -> list[int]:
        """Encode a text that continues a sequence: without special tokens."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return token ids without special tokens, and each token's characters (start, stop).

        Raises:
            SoftshardsError: the tokenizer is a slow one, without character offsets.
        """
        encoding = self._offsets_tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    @cached_property
    def _offsets_tokenizer(self) -> Tokenizer:
        """The tokenizer without its post-processor, which may cut spaces off the offsets."""
        from tokenizers import Tokenizer

        if not self.tokenizer.is_fast:
            raise SoftshardsError(
                "chats need a fast tokenizer: this one gives no character offsets",
                path=self.path,
                hint="convert it to tokenizer.json, or give prompt and completion, or token ids",
            )
        plain = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        plain.post_processor = None
        plain.no_truncation()
        plain.no_padding()
        return plain


def require_checkpoint(path: Path) -> None:
    """Raise an error for a folder that is not a checkpoint.

    Raises:
        SoftshardsError: config.json is missing.
    """
    if not (path / "config.json").is_file():
        raise SoftshardsError("not a model: config.json is missing", path=path, hint=CHECKPOINT)


def open_config(path: Path, *, trust_code: bool = False) -> Any:
    """Return a checkpoint's configuration, which has no types.

    Raises:
        SoftshardsError: the folder is not a checkpoint, or needs code of its own.
    """
    require_checkpoint(path)
    with _explain(path, trust_code):
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(path, trust_remote_code=trust_code)


def open_teacher(
    path: Path, *, max_length: int, chat_template: Path | None = None, trust_code: bool = False
) -> Teacher:
    """Load a teacher's tokenizer and configuration.

    Args:
        path: the teacher's folder.
        max_length: longest sequence that it must support, in tokens.
        chat_template: Jinja file that replaces the tokenizer's own template.
        trust_code: run the checkpoint's own code, if it has some.

    Raises:
        SoftshardsError: the folder is not a checkpoint or needs code of its own, has no tokenizer
            or a shorter context, or the template cannot be read.
    """
    require_checkpoint(path)
    template = None if chat_template is None else _read_template(chat_template)

    @cache
    def load_tokenizer() -> Any:
        with _explain(path, trust_code):
            from transformers import AutoTokenizer

            # True or False: without a value, transformers asks on the terminal.
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_code)
        if template is not None:
            tokenizer.chat_template = template
        return tokenizer

    def read_facts() -> CheckpointFacts:
        return _read_facts(path, load_tokenizer(), trust_code)

    # What a checkpoint's own code says may change with what its code reads.
    facts = read_facts() if trust_code else remembered_facts(path, read_facts)
    context = facts.context or max_length
    if max_length > context:
        raise SoftshardsError(
            f"--max-length {max_length} is more than the model's context of {context} tokens",
            path=path,
            hint=f"pass --max-length {context} or less",
        )
    if facts.unknown_stop_ids:
        beyond = f"stop ids beyond the tokenizer's {facts.vocab_size} ids are ignored"
        ids = ", ".join(map(str, facts.unknown_stop_ids))
        err.print(f"{path / GENERATION}: {beyond}: {ids}")
    return Teacher(
        path=path,
        load_tokenizer=load_tokenizer,
        chat_template=facts.chat_template if template is None else template,
        vocab_size=facts.vocab_size,
        context=context,
        dtype=facts.dtype,
        stop_ids=facts.stop_ids,
        trust_code=trust_code,
        layers=facts.layers,
        width=facts.width,
    )


def _read_facts(path: Path, tokenizer: Any, trust_code: bool) -> CheckpointFacts:
    with _explain(path, trust_code):
        config = open_config(path, trust_code=trust_code)
        stop_ids = {tokenizer.eos_token_id, *generation_stop_ids(path)} - {None}
        unknown = {token for token in stop_ids if token >= len(tokenizer)}
        return CheckpointFacts(
            vocab_size=len(tokenizer),
            context=model_context(config),
            dtype=model_dtype(config, path),
            stop_ids=tuple(sorted(stop_ids - unknown)),
            unknown_stop_ids=tuple(sorted(unknown)),
            chat_template=tokenizer.chat_template,
            layers=getattr(config.get_text_config(), "num_hidden_layers", None),
            width=getattr(config.get_text_config(), "hidden_size", None),
        )


@contextmanager
def _explain(path: Path, trust_code: bool) -> Iterator[None]:
    """Turn what transformers raises over a checkpoint into an error in the user's terms.

    Raises:
        SoftshardsError: the checkpoint cannot be opened, or needs code of its own.
    """
    try:
        yield
    except SoftshardsError:
        raise
    except BaseException as error:  # parsers raise many types
        if not is_failure(error):
            raise
        file = None if trust_code else own_code(path)
        if file is not None and "trust_remote_code" in str(error):
            raise SoftshardsError(
                f"the model needs code of its own ({file} names it under `auto_map`)",
                path=path,
                hint="read that code; if you trust it, `label` and `preview` run it with "
                "--engine-arg.trust-remote-code true",
            ) from error
        raise SoftshardsError(
            f"the model cannot be opened: {first_line(error)}", path=path, hint=CHECKPOINT
        ) from error


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SoftshardsError(
            f"the chat template cannot be read: {first_line(error)}",
            path=path,
            hint="check --chat-template",
        ) from error
