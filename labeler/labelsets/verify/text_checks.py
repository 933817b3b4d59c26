"""Check a label set's teacher, tokenizer and chat template, without running a model.

Most checks do not need the teacher: a set carries its tokenizer, and prompts and generations are
stored as text beside their ids.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path

from labeler.labeling.teacher.teacher import (
    CHECKPOINT,
    Teacher,
    open_teacher,
    require_checkpoint,
)
from labeler.labeling.teacher.template_clock import TemplateClock
from labeler.labeling.teacher.template_process import TemplateLimit, limited_templates
from labeler.labelsets.common.tokenizer_file import (
    TOKENIZER_JSON,
    TextTokenizer,
    TokenizerFile,
    as_tokenizer_errors,
    load_with_transformers,
)
from labeler.labelsets.verify.template_fit import (
    Fit,
    Message,
    Template,
    TextRow,
    find_template,
    read_messages,
    template_fit,
)
from schemas import LabelSet, SoftshardsError
from schemas.errors import first_line
from schemas.findings import Finding
from schemas.fingerprint import sha256_json, tokenizer_digest, weights_digest
from schemas.invariants import row_name
from schemas.json_values import read_object
from schemas.row_group import RowGroup

ROWS = 64
"""Rows whose text is checked, spread over the row groups."""
SAMPLE_THREADS = 2
"""Row groups behind a URL that are read at once: a few bytes may expand to 64 MB in each."""
COLUMNS = tuple(TextRow.__annotations__)
ROUND_TRIP_SHARE = 0.5
"""Share of neighboring tokens that must come back when their text is tokenized again."""
ROUND_TRIP_PAIRS = 50
"""Minimum neighboring tokens before that share means anything."""
OTHER_TOKENIZER = "label the input again with the intended teacher's tokenizer"
OTHER_TEMPLATE = "label the input again with the intended chat template"


def check_text(labels: LabelSet) -> list[Finding]:
    """Check ids against the text beside them, by the set's own tokenizer and chat template.

    The set's shards must have been verified: they are not hashed again here.
    """
    rows = _sample_rows(labels)
    found: list[Finding] = []
    with limited_templates() as renderer:
        for open_tokenizer in _tokenizer_loaders(labels):
            try:
                with as_tokenizer_errors(labels.tokenizer_dir):
                    tokenizer = open_tokenizer()
            except SoftshardsError as error:
                what = f"no text was checked: {error.what}"
                found = [Finding(kind="tokenizer", where="tokenizer", what=what)]
            else:
                teacher = replace(_as_teacher(labels, tokenizer), renderer=renderer)
                found = list(_check_rows(labels, rows, teacher))
            if all(finding.note for finding in found):
                break
    return found


def _tokenizer_loaders(labels: LabelSet) -> Iterator[Callable[[], TextTokenizer]]:
    """Yield ways to open the set's tokenizer, the cheapest first.

    The last one labeled the set, so its findings count. It imports torch, which takes seconds. The
    others read the same `tokenizer.json`; where they find no problem, there is none.
    """
    directory = labels.tokenizer_dir
    if (directory / TOKENIZER_JSON).is_file():
        if labels.manifest.identity.chat_template is None:
            yield lambda: TokenizerFile(directory / TOKENIZER_JSON)
        else:
            yield lambda: _load_with_template(directory)
    yield lambda: load_with_transformers(directory)


def _load_with_template(directory: Path) -> TextTokenizer:
    from transformers import PreTrainedTokenizerFast

    tokenizer: TextTokenizer = PreTrainedTokenizerFast.from_pretrained(
        directory, trust_remote_code=False
    )
    return tokenizer


def _as_teacher(labels: LabelSet, tokenizer: TextTokenizer) -> Teacher:
    """Return a teacher that is only a tokenizer."""
    eos: int | None = getattr(tokenizer, "eos_token_id", None)
    return Teacher(
        path=labels.tokenizer_dir,
        load_tokenizer=lambda: tokenizer,
        chat_template=tokenizer.chat_template,
        vocab_size=len(tokenizer),
        context=labels.manifest.identity.max_length,
        dtype=labels.manifest.identity.dtype,
        stop_ids=() if eos is None else (eos,),
    )


def _check_rows(labels: LabelSet, rows: Sequence[TextRow], teacher: Teacher) -> Iterator[Finding]:
    identity = labels.manifest.identity
    if teacher.vocab_size != identity.vocab_size:
        yield Finding(
            kind="tokenizer",
            where="tokenizer",
            what=f"wrong tokenizer: it has {teacher.vocab_size} tokens, the labels cover "
            f"{identity.vocab_size}",
            hint=OTHER_TOKENIZER,
        )
        return
    wrong = list(_check_texts(rows, teacher))
    yield from wrong
    if identity.chat_template is not None and not wrong:
        yield from _check_template(labels, rows, teacher)


def check_teacher(labels: LabelSet, path: Path) -> Iterator[Finding]:
    """Check a checkpoint against the digests in the manifest.

    Raises:
        SoftshardsError: the folder is not a checkpoint.
    """
    identity = labels.manifest.identity
    require_checkpoint(path)
    expected = {"tokenizer": identity.tokenizer}
    try:
        found = {"tokenizer": tokenizer_digest(path)}
        if identity.weights_scope not in ("served", "stated"):  # those digests do not cover files
            expected["weights"] = identity.weights
            found["weights"] = weights_digest(path, full=identity.weights_scope == "full")
    except (FileNotFoundError, ValueError) as error:
        raise SoftshardsError(
            f"not a complete model: {first_line(error)}", path=path, hint=CHECKPOINT
        ) from error
    for name, digest in found.items():
        if digest != expected[name]:
            kind = "tokenizer" if name == "tokenizer" else "teacher"
            yield Finding(
                kind=kind,
                where=str(path),
                what=f"wrong {kind}: the digest of its {name} is {digest[:16]}..., the labels "
                f"were made with {expected[name][:16]}...",
                hint="give the checkpoint that made the set with --model",
            )
    config = sha256_json(read_object(path / "config.json"))
    if config != identity.model_config_digest and identity.weights_scope != "stated":
        what = "its config.json differs from the one that the labels were made with"
        yield Finding(kind="teacher", where=str(path), what=what, note=True)
    if identity.chat_template is None:
        return  # opening the teacher takes seconds
    own = open_teacher(path, max_length=identity.max_length).chat_template
    if find_template(labels.manifest, own) is None:
        yield Finding(
            kind="template",
            where=str(path),
            what="wrong chat template: the rows were rendered by a different one (digest "
            f"{identity.chat_template[:16]}...), or with other arguments",
            hint=OTHER_TEMPLATE,
        )


def _sample_rows(labels: LabelSet) -> list[TextRow]:
    """Read up to `ROWS` rows, from the start of row groups that are spread over the set."""
    groups = labels.row_groups
    chosen = groups[:: max(1, len(groups) // ROWS)][:ROWS]
    each = -(-ROWS // max(1, len(chosen)))

    def read(group: RowGroup) -> list[TextRow]:
        rows: list[TextRow] = (
            labels.read_row_group(group, COLUMNS, verify=False).slice(0, each).to_pylist()
        )
        return rows

    with ThreadPoolExecutor(SAMPLE_THREADS if labels.remote else 1) as pool:
        return list(chain.from_iterable(pool.map(read, chosen)))[:ROWS]


def _check_texts(rows: Sequence[TextRow], teacher: Teacher) -> Iterator[Finding]:
    """Decode ids and compare them with the text beside them; then tokenize that text again."""
    checked = [
        (row, matches) for row in rows if (matches := _matches_text(row, teacher)) is not None
    ]
    wrong = [row for row, matches in checked if not matches]
    if wrong:
        mostly = len(wrong) > len(checked) / 2
        what = (
            f"decoded, the ids of {len(wrong)} of {len(checked)} rows checked do not give the text "
            "of their prompt or generation"
        )
        yield Finding(
            kind="tokenizer" if mostly else "text",
            where=_name(wrong[0]),
            what=f"wrong tokenizer: {what}" if mostly else what,
            hint=OTHER_TOKENIZER if mostly else None,
        )
    pairs, back = 0, 0
    for row in rows:
        # A model need not write tokens as the tokenizer would, here or in the parent's set.
        generated = row["generation"] is not None and row["spans"]
        ids = row["input_ids"][: row["spans"][0]["start"]] if generated else row["input_ids"]
        if row["parent_id"] is None and len(ids) > 1:
            again = Counter(pairwise(teacher.encode_continuation(teacher.tokenizer.decode(ids))))
            back += (again & Counter(pairwise(ids))).total()
            pairs += len(ids) - 1
    if not wrong and pairs >= ROUND_TRIP_PAIRS and back < ROUND_TRIP_SHARE * pairs:
        yield Finding(
            kind="tokenizer",
            what="wrong tokenizer: decoded and tokenized again, only "
            f"{back / pairs:.0%} of neighboring tokens come back",
            hint=OTHER_TOKENIZER,
        )


def _matches_text(row: TextRow, teacher: Teacher) -> bool | None:
    """Return whether a row's ids decode to its prompt and generation; None if it has neither."""
    ids, prompt, generation = row["input_ids"], row["prompt"], row["generation"]
    matches: list[bool] = []
    if generation is not None and row["spans"]:
        answer = ids[row["spans"][0]["start"] :]
        decoded = teacher.tokenizer.decode(answer, skip_special_tokens=True)
        matches.append(_normalized(decoded) == _normalized(generation))
    if prompt is not None:
        messages = read_messages(prompt)
        contents = [prompt] if messages is None else _user_texts(messages)
        sequence = _normalized(teacher.tokenizer.decode(ids))
        matches += [_normalized(text) in sequence for text in contents]
    return all(matches) if matches else None


def _user_texts(messages: Sequence[Message]) -> list[str]:
    contents = [message["content"] for message in messages if message["role"] == "user"]
    return [content for content in contents if isinstance(content, str)]


def _normalized(text: str) -> str:
    """Remove what tokenizers normalize: whitespace, case, compatibility forms."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _check_template(
    labels: LabelSet, rows: Sequence[TextRow], teacher: Teacher
) -> Iterator[Finding]:
    """Check rows against their messages as rendered by the template that the set names.

    The first limit that the template reaches ends this: it would reach it with every row.
    """
    manifest = labels.manifest
    template = find_template(manifest, teacher.chat_template)
    tried = template or Template(text=teacher.chat_template or "", arguments={})
    teacher = replace(teacher, chat_template=tried.text or None)
    teacher.tokenizer.chat_template = teacher.chat_template
    if moment := manifest.identity.template_time:
        teacher = replace(teacher, clock=TemplateClock(moment))
    fits: list[tuple[TextRow, Fit]] = []
    for number, row in enumerate(rows):
        try:
            fit = template_fit(row, teacher, tried, manifest.identity)
        except TemplateLimit as error:
            what = f"{error.what}: {len(rows) - number} of {len(rows)} rows were not checked"
            yield Finding(kind="template", where="tokenizer", what=what, hint=OTHER_TEMPLATE)
            break
        if fit is not None:
            fits.append((row, fit))
    other = [row for row, fit in fits if fit == "other"]
    if other:
        name = "the set's chat template" if template else "the tokenizer's own chat template"
        yield Finding(
            kind="template",
            where=_name(other[0]),
            what=f"wrong chat template: the ids of {len(other)} of {len(fits)} rows checked are "
            f"not their messages as rendered by {name}",
            hint=OTHER_TEMPLATE,
        )
    if before := [row for row, fit in fits if fit == "context"]:
        yield Finding(
            kind="template",
            where=_name(before[0]),
            what=f"{len(before)} of {len(fits)} rows checked have more before their last message "
            "than their messages: tools or documents, which a label set does not keep",
            note=True,
        )
    if tried.is_given:
        what = "the rows were rendered by a chat template given with --chat-template"
        yield Finding(kind="template", what=what, note=True)


def _name(row: TextRow) -> str:
    return row_name((row["id"], row["chunk"], row["sample"]))
