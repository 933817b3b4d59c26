"""Who may import whom: labeler -> schemas <- trainer. Asked of fresh interpreters, not of grep."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import pytest

import schemas
import trainer

FORBIDDEN = {
    "schemas": ("labeler", "trainer", "torch", "transformers", "vllm", "accelerate"),
    "trainer": ("labeler", "vllm"),
    "labeler": ("trainer", "vllm"),  # vLLM is imported when an engine starts
}


def modules_of(package: str) -> list[str]:
    found = __import__(package)
    names = [name for _, name, _ in pkgutil.walk_packages(found.__path__, f"{package}.")]
    return [package, *(name for name in names if not name.endswith("__main__"))]


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `statement`."""
    code = f"{statement}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    names = json.loads(done.stdout.strip().splitlines()[-1])
    return {name.split(".")[0] for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_package_never_sees_the_forbidden(package: str) -> None:
    """All its modules are imported together, in a process of its own."""
    names = modules_of(package)
    assert len(names) > 5
    loaded = loaded_by("import " + ", ".join(names))
    assert package in loaded
    assert not loaded & set(FORBIDDEN[package])


@pytest.mark.parametrize("package", [schemas, trainer], ids=["schemas", "trainer"])
def test_help_text_needs_no_heavy_import(package: object) -> None:
    loaded = loaded_by(f"import {package.__name__}")
    assert not loaded & {"torch", "transformers"}


@pytest.mark.parametrize("command", ["labeler", "trainer"])
def test_help_is_quick_to_load(command: str) -> None:
    """`--help` waits neither for torch nor for Arrow, Polars or Pydantic."""
    heavy = {"torch", "transformers", "vllm", "numpy", "pyarrow", "polars", "pydantic", "fsspec"}
    assert not loaded_by(f"import {command}.cli") & heavy
