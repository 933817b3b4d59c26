"""The label set on disk: the contract between the labeler and the trainer (docs/format.md)."""

from schemas.codec import PAD_ID, DecodedLabels, Labels, bucketed_entropy, decode, encode
from schemas.errors import IdentityError, LabelSetError, SoftshardsError
from schemas.labelset import LabelSet, RowGroup, open_label_set
from schemas.manifest import Identity, Manifest, Sampling
from schemas.rounding import rounding
from schemas.scan import facts, scan
from schemas.shard import to_plain
from schemas.validate import validate_label_set, validate_table
from schemas.version import FORMAT_VERSION, __version__

__all__ = [
    "FORMAT_VERSION",
    "PAD_ID",
    "DecodedLabels",
    "Identity",
    "IdentityError",
    "LabelSet",
    "LabelSetError",
    "Labels",
    "Manifest",
    "RowGroup",
    "Sampling",
    "SoftshardsError",
    "__version__",
    "bucketed_entropy",
    "decode",
    "encode",
    "facts",
    "open_label_set",
    "rounding",
    "scan",
    "to_plain",
    "validate_label_set",
    "validate_table",
]
