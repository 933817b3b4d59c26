"""The facts that identify inputs: digests of their content, and the lineage of label sets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from labeler.labeling.inputs.find_inputs import Input, InputSet
from labeler.labeling.inputs.locations import as_input_errors, content_digest
from schemas import LabelSet
from schemas.fingerprint import sha256_json


def input_digests(inputs: Iterable[Input]) -> dict[str, str]:
    """Return what identifies each input's content, by name; a resumed run compares it.

    That is the SHA-256 of a local file (for a dataset: of its files' digests), what its store
    reports about a remote one, the self digest of a label set's manifest or of a view.

    Raises:
        SoftshardsError: a file cannot be read.
    """
    return {each.name: _digest(each) for each in inputs}


def _digest(source: Input) -> str:
    if isinstance(source, InputSet):
        return _set_digest(source.labels)
    with as_input_errors(source.fs, source.name, "check that the file still exists"):
        digests = [content_digest(source.fs, path) for path in source.paths]
    return digests[0] if len(digests) == 1 else sha256_json(digests)


def _set_digest(labels: LabelSet) -> str:
    return labels.manifest.self_digest if labels.view is None else labels.view.self_digest


def parent_sets(inputs: Iterable[Input]) -> list[dict[str, Any]]:
    """Return the facts of the label sets among the inputs, for the lineage of their descendants.

    Returns:
        Per set: `name`, `self_digest` of its manifest, `identity_digest`, `teacher`, digests of its
        teacher's `weights` and `tokenizer`, `mode`, and its own `ancestry`; `keep_positions`, where
        it has not all labels; for a view also `view`, the rules that made it.
    """
    return [_facts(each.name, each.labels) for each in inputs if isinstance(each, InputSet)]


def _facts(name: str, labels: LabelSet) -> dict[str, Any]:
    manifest = labels.manifest
    facts: dict[str, Any] = {
        "name": name,
        "self_digest": manifest.self_digest,
        "identity_digest": manifest.identity_digest,
        "teacher": manifest.provenance.get("teacher"),
        "weights": manifest.identity.weights,
        "tokenizer": manifest.identity.tokenizer,
        "mode": manifest.identity.mode,
        "ancestry": manifest.provenance.get("parents", []),
    }
    if manifest.identity.keep_positions is not None:
        facts["keep_positions"] = manifest.identity.keep_positions
    return facts if labels.view is None else facts | {"view": labels.view.made}
