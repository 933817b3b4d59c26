"""The teacher of a run and its identity, whether its weights are here or on a server."""

from __future__ import annotations

import dataclasses
from typing import Literal

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.teacher.teacher import Teacher, open_teacher
from labeler.labeling.teacher.teacher_config import trusts_code
from labeler.labeling.teacher.teacher_identity import Weights, local_weights, teacher_identity
from schemas import Identity
from schemas.hub_model import ModelSource


def identify_teacher(
    config: LabelConfig,
    *,
    weights_digest: Literal["full", "header"],
    source: ModelSource | None = None,
) -> tuple[Teacher, Identity]:
    """Open the teacher's tokenizer and identify its labels.

    Args:
        config: the teacher and the settings of the labels.
        weights_digest: hash all bytes of local weights, or file sizes and headers only.
        source: where the folder comes from, if not from the user. Without its weights, the identity
            has no digest of them.

    Raises:
        SoftshardsError: the checkpoint is incomplete, or the server does not answer.
    """
    teacher = open_teacher(
        config.model,
        max_length=config.max_length,
        chat_template=config.chat_template,
        trust_code=trusts_code(config.engine_arg),
    )
    if source is not None:
        teacher = dataclasses.replace(teacher, source=source)
        if source.missing_bytes:
            return teacher, teacher_identity(teacher, config, Weights(digest="", scope="header"))
    return teacher, teacher_identity(teacher, config, _weights(config, weights_digest))


def _weights(config: LabelConfig, scope: Literal["full", "header"]) -> Weights:
    if config.engine != "served":
        return local_weights(config.model, scope)
    from labeler.labeling.engines.served.client import served_weights

    return served_weights(config)
