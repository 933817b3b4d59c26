"""Where a label set's rows come from: is this its teacher, its tokenizer, its chat template?

No model runs here. Much needs no teacher either: a set has its tokenizer with it, and text beside
the ids of prompts and generations.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from labeler.labeling.teacher.teacher import Teacher, open_teacher
from labeler.labelsets.verify.template_fit import Template, fit, known_template, read_messages
from schemas import LabelSet
from schemas.errors import first_line
from schemas.findings import Finding
from schemas.fingerprint import sha256_json, tokenizer_digest, weights_digest
from schemas.invariants import row_name

ROWS = 64
"""Rows whose text is looked at, spread over the row groups."""
COLUMNS = (
    *("id", "chunk", "sample", "parent_id"),
    *("prompt", "generation", "input_ids", "spans"),
)
COME_BACK = 0.5
"""Share of neighboring tokens that the tokenizer must make again of their text."""
ENOUGH_PAIRS = 50
"""Neighboring tokens below which that share says nothing."""
OTHER_TOKENIZER = "label the input again, with the tokenizer of the teacher that is meant"
OTHER_TEMPLATE = "label the input again, with the chat template that is meant"


def check_text(labels: LabelSet) -> Iterator[Finding]:
    """Ids against the text beside them, by the tokenizer and template that the set carries."""
    identity = labels.manifest.identity
    try:
        teacher = _own_tokenizer(labels)
    except Exception as error:  # broken files raise whatever their parser likes
        what = f"the tokenizer cannot be loaded, so no text was checked: {first_line(error)}"
        yield Finding(kind="tokenizer", where="tokenizer", what=what)
        return
    if teacher.vocab_size != identity.vocab_size:
        yield Finding(
            kind="tokenizer",
            where="tokenizer",
            what=f"wrong tokenizer: it has {teacher.vocab_size} tokens, the labels are over "
            f"{identity.vocab_size}",
            hint=OTHER_TOKENIZER,
        )
        return
    rows = _some_rows(labels)
    wrong = list(_texts(rows, teacher))
    yield from wrong
    if identity.chat_template is not None and not wrong:
        yield from _template(labels, rows, teacher)


def check_teacher(labels: LabelSet, path: Path) -> Iterator[Finding]:
    """A checkpoint against the digests in the manifest.

    Raises:
        SoftshardsError: the folder is no checkpoint.
    """
    identity = labels.manifest.identity
    teacher = open_teacher(path, max_length=identity.max_length)
    expected = {"tokenizer": identity.tokenizer}
    found = {"tokenizer": tokenizer_digest(path)}
    if identity.weights_scope not in ("served", "stated"):  # there it is not a digest of files
        expected["weights"] = identity.weights
        found["weights"] = weights_digest(path, full=identity.weights_scope == "full")
    for name, digest in found.items():
        if digest != expected[name]:
            kind = "tokenizer" if name == "tokenizer" else "teacher"
            yield Finding(
                kind=kind,
                where=str(path),
                what=f"wrong {kind}: the digest of its {name} is {digest[:16]}..., that of the "
                f"labels' {expected[name][:16]}...",
                hint="give the checkpoint that made the set with --model",
            )
    config = sha256_json(json.loads((path / "config.json").read_bytes()))
    if config != identity.model_config_digest and identity.weights_scope != "stated":
        what = "its config.json is not the one that the labels were made with"
        yield Finding(kind="teacher", where=str(path), what=what, note=True)
    yield from _teachers_template(labels, teacher)


def _teachers_template(labels: LabelSet, teacher: Teacher) -> Iterator[Finding]:
    """Whether rows that went through a template went through this teacher's."""
    ours = labels.manifest.identity.chat_template
    if ours is not None and known_template(labels.manifest, teacher.chat_template) is None:
        yield Finding(
            kind="template",
            where=str(teacher.path),
            what="wrong chat template: the rows went through another one than this teacher's "
            f"(digest {ours[:16]}...), or it was given other arguments",
            hint=OTHER_TEMPLATE,
        )


def _own_tokenizer(labels: LabelSet) -> Teacher:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(labels.tokenizer_dir)
    eos = tokenizer.eos_token_id
    return Teacher(
        path=labels.tokenizer_dir,
        tokenizer=tokenizer,
        vocab_size=len(tokenizer),
        context=labels.manifest.identity.max_length,
        dtype=labels.manifest.identity.dtype,
        stop_ids=() if eos is None else (eos,),
    )


def _some_rows(labels: LabelSet) -> list[dict[str, Any]]:
    """Up to `ROWS` rows, from the start of row groups that are spread over the set."""
    groups = labels.row_groups
    chosen = groups[:: max(1, len(groups) // ROWS)][:ROWS]
    each = -(-ROWS // max(1, len(chosen)))
    rows: list[dict[str, Any]] = []
    for group in chosen:
        rows += labels.read_row_group(group, COLUMNS).slice(0, each).to_pylist()
    return rows[:ROWS]


def _texts(rows: Sequence[dict[str, Any]], teacher: Teacher) -> Iterator[Finding]:
    """Ids decoded, against prompts and generations; then tokenized again, against themselves."""
    told = [(row, agrees) for row in rows if (agrees := _says_its_text(row, teacher)) is not None]
    wrong = [row for row, agrees in told if not agrees]
    if wrong:
        of = f"{len(wrong)} of {len(told)} rows looked at"
        mostly = len(wrong) > len(told) / 2
        what = f"decoded, the ids of {of} do not have the text of their prompt or generation"
        yield Finding(
            kind="tokenizer" if mostly else "text",
            where=_name(wrong[0]),
            what=f"wrong tokenizer: {what}" if mostly else what,
            hint=OTHER_TOKENIZER if mostly else None,
        )
    pairs, back = 0, 0
    for row in rows:
        # What a model wrote need not be as the tokenizer writes it, here or in the parent's set.
        written = row["generation"] is not None and row["spans"]
        ids = row["input_ids"][: row["spans"][0]["start"]] if written else row["input_ids"]
        if row["parent_id"] is None and len(ids) > 1:
            again = Counter(pairwise(teacher.encode_more(teacher.tokenizer.decode(ids))))
            back += (again & Counter(pairwise(ids))).total()
            pairs += len(ids) - 1
    if not wrong and pairs >= ENOUGH_PAIRS and back < COME_BACK * pairs:
        yield Finding(
            kind="tokenizer",
            what="wrong tokenizer: decoded and tokenized again, only "
            f"{back / pairs:.0%} of neighboring tokens come back",
            hint=OTHER_TOKENIZER,
        )


def _says_its_text(row: dict[str, Any], teacher: Teacher) -> bool | None:
    """Whether a row's ids say its prompt and its generation; None where it has neither."""
    ids, prompt, generation = row["input_ids"], row["prompt"], row["generation"]
    agrees: list[bool] = []
    if generation is not None and row["spans"]:
        answer = ids[row["spans"][0]["start"] :]
        said = teacher.tokenizer.decode(answer, skip_special_tokens=True)
        agrees.append(_plain(said) == _plain(generation))
    if prompt is not None:
        messages = read_messages(prompt)
        contents = (
            [prompt]
            if messages is None
            else [
                m["content"]
                for m in messages
                if m["role"] == "user" and isinstance(m["content"], str)
            ]
        )
        whole = _plain(teacher.tokenizer.decode(ids))
        agrees += [_plain(text) in whole for text in contents]
    return all(agrees) if agrees else None


def _plain(text: str) -> str:
    """Text without what tokenizers normalize away: blanks, case, compatibility forms."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _template(
    labels: LabelSet, rows: Sequence[dict[str, Any]], teacher: Teacher
) -> Iterator[Finding]:
    """Rows against what the template that the set names makes of their messages."""
    manifest = labels.manifest
    template = known_template(manifest, teacher.chat_template)
    tried = template or Template(text=teacher.chat_template or "", arguments={})
    teacher.tokenizer.chat_template = tried.text or None
    fits = [(row, found) for row in rows if (found := fit(row, teacher, tried, manifest.identity))]
    other = [row for row, found in fits if found == "other"]
    if other:
        which = "the set's chat template" if template else "the tokenizer's own chat template"
        yield Finding(
            kind="template",
            where=_name(other[0]),
            what=f"wrong chat template: the ids of {len(other)} of {len(fits)} rows looked at are "
            f"not what {which} makes of their messages",
            hint=OTHER_TEMPLATE,
        )
    if before := [row for row, found in fits if found == "context"]:
        yield Finding(
            kind="template",
            where=_name(before[0]),
            what=f"{len(before)} of {len(fits)} rows looked at have more before their last message "
            "than their messages say: tools or documents, which a label set does not keep",
            note=True,
        )
    if tried.given:
        what = "the rows went through a chat template given by --chat-template"
        yield Finding(kind="template", what=what, note=True)


def _name(row: dict[str, Any]) -> str:
    return row_name((row["id"], row["chunk"], row["sample"]))
