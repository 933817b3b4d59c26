"""The label set on disk: the contract between the labeler and the trainer (docs/format.md)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schemas.codec import PAD_ID, DecodedLabels, Labels, bucketed_entropy, decode, encode
    from schemas.errors import IdentityError, LabelSetError, SoftshardsError
    from schemas.invariants import validate_table
    from schemas.labelset import LabelSet, open_label_set
    from schemas.lazy_scan import scan
    from schemas.manifest import Identity, Manifest, Sampling
    from schemas.rounding_error import rounding
    from schemas.row_group import RowGroup
    from schemas.set_facts import facts
    from schemas.shard import to_plain
    from schemas.validate import validate_label_set
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

_HOMES = {
    "codec": ("PAD_ID", "DecodedLabels", "Labels", "bucketed_entropy", "decode", "encode"),
    "errors": ("IdentityError", "LabelSetError", "SoftshardsError"),
    "invariants": ("validate_table",),
    "labelset": ("LabelSet", "open_label_set"),
    "lazy_scan": ("scan",),
    "manifest": ("Identity", "Manifest", "Sampling"),
    "rounding_error": ("rounding",),
    "row_group": ("RowGroup",),
    "set_facts": ("facts",),
    "shard": ("to_plain",),
    "validate": ("validate_label_set",),
    "version": ("FORMAT_VERSION", "__version__"),
}
"""Public names by module. No module bears a public name: importing it would hide the function."""

_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that `import schemas` alone costs nothing."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'schemas' has no attribute {name!r}")
    found: object = getattr(import_module(f"schemas.{_MODULE_OF[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
