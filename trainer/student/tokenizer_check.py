"""Check that a student's token ids mean the same tokens as the teacher's."""

from __future__ import annotations

import json
from pathlib import Path

from schemas.errors import IdentityError, first_line
from schemas.fingerprint import tokenizer_digest
from schemas.labelset import LabelSet


def check_tokenizer(path: Path, labels: LabelSet, *, required: bool = True) -> None:
    """Check that a student's tokenizer gives the same ids as the teacher's.

    Args:
        path: the student's folder.
        labels: a label set of the teacher.
        required: False accepts a student without a tokenizer.

    Raises:
        IdentityError: it does not; the message has both digests, both sizes and an example.
    """
    expected = labels.manifest.identity.tokenizer
    try:
        found = tokenizer_digest(path)
    except FileNotFoundError as error:
        if not required:
            return
        raise IdentityError(
            "the student has no tokenizer: its ids cannot be compared with the teacher's",
            path=path,
            hint=f"if they are the same, copy the files of {labels.tokenizer_dir} into the folder",
        ) from error
    except ValueError as error:
        what = f"the student's tokenizer cannot be read: {first_line(error)}"
        raise IdentityError(what, path=path) from error
    if found != expected:
        raise IdentityError(
            "the student's tokenizer is not the teacher's: the labels' ids would mean different "
            f"tokens\n  digest: student {found[:16]}, teacher {expected[:16]}"
            f"{_difference(path, labels.tokenizer_dir)}",
            path=path,
            hint="use a student of the teacher's family, or `trainer slice` one from the teacher; "
            "--vocab-map accepts one that shares almost all tokens",
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
    student_json, teacher_json = (json.loads(f.read_text(encoding="utf-8")) for f in files)
    parts = [k for k in teacher_json if student_json.get(k) != teacher_json[k]]
    parts = [k for k in parts if k not in ("padding", "truncation")]
    return f"{lines}\n  every id has the same token, but these parts differ: {', '.join(parts)}"
