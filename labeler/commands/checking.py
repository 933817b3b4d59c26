"""Commands that check and repair label sets: `verify`, `repair`."""

from __future__ import annotations

from labeler.labelsets.repair.repair_config import RepairConfig
from labeler.labelsets.verify.verify_config import VerifyConfig


def verify(config: VerifyConfig) -> int:
    """Check label sets: hashes, schema and invariants; with --rescore, the labels themselves.

    Names what is wrong: labels shifted against the tokens, a wrong tokenizer, chat template or
    teacher, another temperature, a lost tail. Exit code 0: all good; 1: something is wrong.

    Example: `labeler verify ./labels --rescore 4 --model ./teacher`
    """
    from labeler.labelsets.verify.verify import run_verify

    return run_verify(config)


def repair(config: RepairConfig) -> int:
    """Rebuild the damaged parts of a label set from the intact ones, and list the units to redo.

    Nothing is deleted: damaged files are moved into LABELS/quarantine. Manifest, index, journal,
    plan and tokenizer are rebuilt wherever another file vouches for their content; the same
    `labeler label` command then labels the lost units, and only them. Exit code 0: the set is
    complete and intact; 1: something is left to do.

    Example: `labeler repair ./labels --dry-run`, then `labeler repair ./labels`
    """
    from labeler.labelsets.repair.repair import run_repair

    return run_repair(config)
