"""Text without passwords and tokens: for messages, logs, and whatever is stored or shared."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"
_END = r"\s\"'<>`|\\^{}"
"""Characters that no URL has."""

USER = re.compile(rf"([a-z][a-z0-9+.-]+:/{{1,2}})[^{_END}/?#]*@", re.IGNORECASE)
"""`https://user:password@`; a password may have an @ itself. `Path` makes one slash of two."""
ODD_USER = re.compile(
    rf"([a-z][a-z0-9+.-]+:/{{1,2}})[^{_END}/?#:@]*:(?!\d*[/?#])[^{_END}?#]*@", re.I
)
"""The same with a / in the password, which is no port."""
QUERY = re.compile(rf"([a-z][a-z0-9+.-]+:/{{1,2}}[^{_END}?#]*)[?#][^{_END})\]]*(?<![:,.;])", re.I)
"""A URL with a query or fragment: signatures have as many names as there are stores."""
SECRET = re.compile(
    r"\b((?:access|auth|refresh|session|security|id|api|sas|hf)?[-_]?"
    r"(?:token|key|secret|sig|signature|credential|passw(?:or)?d|pwd)|x-(?:amz|goog)-[a-z-]+|"
    rf"awsaccesskeyid|googleaccessid)=[^{_END}&,;)\]]+",
    re.IGNORECASE,
)
"""`token=...` in a URL without its scheme, as HTTP libraries print it."""
HEADER = re.compile(r"\b(authorization['\": =]+\w+\s+|bearer\s+)[a-z0-9._~+/=-]{6,}", re.IGNORECASE)
KEY = re.compile(r"\b(hf_|sk-|ghp_|AKIA)[A-Za-z0-9_-]{12,}")
"""Keys of the Hub, of servers of models, of stores."""


def redacted(text: str) -> str:
    """Return text with `***` for passwords, queries of URLs, tokens and keys."""
    if ":/" in text:
        text = USER.sub(rf"\1{HIDDEN}@", text)
        text = ODD_USER.sub(rf"\1{HIDDEN}@", text)
        text = QUERY.sub(rf"\1?{HIDDEN}", text)
    if "=" in text:
        text = SECRET.sub(rf"\1={HIDDEN}", text)
    text = HEADER.sub(rf"\1{HIDDEN}", text)
    return KEY.sub(rf"\1{HIDDEN}", text)


def redacted_values(value: Any) -> Any:
    """Return JSON values with every text redacted."""
    if isinstance(value, dict):
        return {key: redacted_values(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [redacted_values(inner) for inner in value]
    return redacted(value) if isinstance(value, str) else value
