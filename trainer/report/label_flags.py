"""The flags of `labeler label` that made a label set, from what its manifest records."""

from __future__ import annotations

from pydantic import JsonValue

from schemas import LabelSet
from schemas.manifest import Identity
from schemas.version import CODECS

IDENTITY = (
    *("k", "max_length", "dtype", "quantization", "top_p_labels", "min_k", "draws", "spans"),
    *("ids_from", "keep_positions"),
)
"""Fields of the identity that have the names of their flags."""
TEMPLATE_FILE = "chat_template.jinja"


def label_flags(labels: LabelSet) -> dict[str, object]:
    """Return the flags, by name; what is not recorded, or is a default, is left out.

    Files are recorded by name and digest, and what a server or Ray did is not recorded.
    """
    manifest, provenance = labels.manifest, labels.manifest.provenance
    identity = manifest.identity
    plan = {name: value for name, value in _plan(labels).items() if name != "inputs"}
    columns = {
        f"{name}_column": name for name in ("text", "prompt", "completion", "messages", "id")
    }
    plan = {name: value for name, value in plan.items() if value != columns.get(name)}
    template = provenance.get("chat_template") or {}
    return {
        "model": provenance.get("teacher") or "TEACHER",
        "mode": identity.mode if identity.mode != "score" else None,
        **{name: getattr(identity, name) for name in IDENTITY},
        "head_dtype": "model" if identity.head_dtype != "float32" else None,
        "overlap": identity.overlap if identity.mode == "score" else None,
        "label_temperatures": ",".join(f"{t:g}" for t in identity.label_temperatures or ()) or None,
        "states": _states(identity),
        **_sampling(identity),
        **(identity.rendering or {}),
        "raw_prompts": (identity.mode == "generate" and identity.chat_template is None) or None,
        "chat_template": TEMPLATE_FILE if template.get("text") is not None else None,
        "template_kwargs": template.get("arguments"),
        "engine_arg": identity.engine_args,
        **plan,
        "codec": next((name for name, codec in CODECS.items() if codec == manifest.codec), None),
    }


def input_names(labels: LabelSet) -> list[str]:
    """Return the names of the input files."""
    inputs = _plan(labels).get("inputs")
    return list(inputs) if isinstance(inputs, dict) else []


def _plan(labels: LabelSet) -> dict[str, JsonValue]:
    plan: dict[str, JsonValue] = labels.manifest.provenance.get("plan") or {}
    return plan


def _states(identity: Identity) -> str | None:
    """Return the layers of --states."""
    layers = (identity.states or "").partition(" ")[0]
    return layers.replace("layer_", "") or None


def _sampling(identity: Identity) -> dict[str, object]:
    sampling = identity.sampling
    if sampling is None:
        return {}
    found = {"samples": sampling.n} if sampling.n > 1 else {}
    names = ("temperature", "top_p", "max_tokens", "min_p", "stop", "structured")
    return found | {name: getattr(sampling, name) for name in names}
