"""Refuse a student whose token ids do not mean what the teacher's do."""

from __future__ import annotations

import json
from pathlib import Path

from schemas.errors import IdentityError
from schemas.fingerprint import tokenizer_digest
from schemas.labelset import LabelSet


def check_tokenizer(path: Path, labels: LabelSet, *, required: bool = True) -> None:
    """Refuse a student whose tokenizer gives other ids than the teacher's.

    Raises:
        IdentityError: with both digests, both sizes and an example of what differs.
    """
    expected = labels.manifest.identity.tokenizer
    try:
        found = tokenizer_digest(path)
    except FileNotFoundError as error:
        if not required:
            return
        raise IdentityError(
            "the student has no tokenizer, so nothing says that its ids mean what the teacher's do",
            path=path,
            hint=f"if they do, copy the files of {labels.tokenizer_dir} into the folder",
        ) from error
    if found != expected:
        raise IdentityError(
            "the student's tokenizer is not the teacher's: the labels' ids would mean other "
            f"tokens\n  digest: student {found[:16]}, teacher {expected[:16]}"
            f"{_difference(path, labels.tokenizer_dir)}",
            path=path,
            hint="take a student of the teacher's family, or `trainer slice` one from the teacher; "
            "--vocab-map takes one that shares almost all tokens",
        )


def _difference(student_dir: Path, teacher_dir: Path) -> str:
    files = [folder / "tokenizer.json" for folder in (student_dir, teacher_dir)]
    if not all(file.is_file() for file in files):
        return ""
    from tokenizers import Tokenizer

    student, teacher = (
        {number: token for token, number in Tokenizer.from_file(str(f)).get_vocab().items()}
        for f in files
    )
    lines = f"\n  vocabulary: student {len(student)} ids, teacher {len(teacher)}"
    for number in sorted(student.keys() | teacher.keys()):
        ours, theirs = student.get(number), teacher.get(number)
        if ours != theirs:
            return f"{lines}\n  for example id {number}: student {ours!r}, teacher {theirs!r}"
    ours_json, theirs_json = (json.loads(f.read_text(encoding="utf-8")) for f in files)
    parts = [k for k in theirs_json if ours_json.get(k) != theirs_json[k]]
    parts = [k for k in parts if k not in ("padding", "truncation")]
    return f"{lines}\n  every id has the same token; what differs: {', '.join(parts)}"
