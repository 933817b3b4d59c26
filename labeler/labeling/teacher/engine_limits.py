"""Sizes that an engine works with, and that its memory is estimated from before it is loaded."""

from __future__ import annotations

REFERENCE_CHUNK = 512
"""Positions whose logits the transformers engine holds at a time: 8,192 of them over 152 k ids
would take 5 GB."""
CPU_KV_CACHE_BYTES = 1 << 30
"""KV cache of vLLM on a CPU, unless --kv-cache-gb sets it."""
