"""llama.cpp's converter from Hugging Face checkpoints to GGUF: found, fetched once, and run.

It is no package: it stands in llama.cpp's repository, which the source archive of llama-cpp-python
holds whole (docs/decisions/0012-export.md).
"""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from schemas.atomic import atomic_directory
from schemas.cache_folder import cache_folder
from schemas.errors import SoftshardsError, first_line
from schemas.fingerprint import TOKENIZER_FILES
from schemas.json_values import parse_object
from trainer.child_process import run_child
from trainer.console import message_console

LLAMA_CPP = "LLAMA_CPP"
"""Environment variable: the folder of a llama.cpp checkout."""
SCRIPT = "convert_hf_to_gguf.py"
PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
KEPT = (SCRIPT, "LICENSE", "conversion/", "gguf-py/gguf/")
"""What the converter consists of, in the archive's vendor/llama.cpp."""
STAGED = (
    *("config.json", "generation_config.json", *TOKENIZER_FILES),
    *("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.tiktoken"),
)
"""Files of a checkpoint that the converter may see: none of them is code."""
EARLIER_NAMES = {
    "gpt2": {"n_ctx": "n_positions"},
    "gpt_neox": {"rotary_pct": "partial_rotary_factor"},
}
"""By model type: names that the converter reads, and those that transformers 5 writes."""
REASONS = {
    "BPE pre-tokenizer was not recognized": "it does not know the student's tokenizer (it knows "
    "tokenizers of published models, by what they make of a sample)",
    "No module named": "a package is missing: {line}",
    "KeyError: '": "config.json lacks a setting that it reads, {line}",
}


@dataclass(frozen=True, kw_only=True)
class Converter:
    """The converter, and what it calls itself in records."""

    script: Path
    version: str


def find_converter(given: Path | None) -> Converter:
    """Return the converter of a checkout, or the one in the cache, which is fetched if missing.

    Raises:
        SoftshardsError: there is none in the checkout, or it cannot be fetched.
    """
    if folder := given or os.environ.get(LLAMA_CPP):
        script = Path(folder) / SCRIPT
        if not script.is_file():
            raise SoftshardsError(
                f"no llama.cpp here: {SCRIPT} is missing",
                path=folder,
                hint="give the folder of a checkout of llama.cpp with --llama-cpp or LLAMA_CPP",
            )
        return Converter(script=script, version=f"llama.cpp in {folder}")
    kept = cache_folder() / "llama.cpp" / f"{PACKAGE}-{VERSION}"
    if not (kept / SCRIPT).is_file():
        _fetch(kept)
    return Converter(script=kept / SCRIPT, version=f"llama.cpp of {PACKAGE} {VERSION}")


def _fetch(kept: Path) -> None:
    console = message_console()
    console.print(f"fetching llama.cpp's converter ({PACKAGE} {VERSION}, 77 MB) into {kept}, once")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as temporary:
        wanted = Path(temporary) / "requirements.txt"
        wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
        done = run_child(
            *("pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
            *("--no-binary", ":all:", "--require-hashes", "-r", wanted, "--dest", temporary),
        )
        archives = list(Path(temporary).glob("*.tar.gz"))
        if done.returncode or not archives:
            lines = [
                line for line in done.stderr.splitlines() if "ERROR" in line or "No mod" in line
            ]
            reason = lines[-1] if lines else f"pip ended with {done.returncode}"
            raise SoftshardsError(
                f"llama.cpp's converter cannot be fetched: {reason}",
                hint="give the folder of a llama.cpp checkout with --llama-cpp",
            )
        with atomic_directory(kept) as tmp:
            _extract(archives[0], tmp)


def _extract(archive: Path, folder: Path) -> None:
    """Write the converter's files, and no others, of an archive whose digest pip has checked."""
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.partition("/vendor/llama.cpp/")[2]
            if member.isfile() and name and name.startswith(KEPT) and ".." not in name.split("/"):
                data = tar.extractfile(member)
                assert data is not None
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data.read())


def convert(converter: Converter, model: Path, out: Path, *, name: str) -> None:
    """Convert a checkpoint, in 16 bits, in a process that sees no code of the checkpoint's.

    Args:
        converter: the converter.
        model: the checkpoint's folder.
        out: the GGUF file to write.
        name: the model's name in the file.

    Raises:
        SoftshardsError: the converter refuses the model; the reason is its own.
    """
    _check_tokenizer_code(model)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("NO_LOCAL_GGUF", None)
    with tempfile.TemporaryDirectory(dir=out.parent) as temporary:
        staged = Path(temporary) / "model"
        staged.mkdir()
        for path in sorted({path for pattern in STAGED for path in model.glob(pattern)}):
            (staged / path.name).symlink_to(path.resolve())
        add_earlier_names(staged / "config.json")
        done = run_child(
            converter.script,
            *(staged, "--outfile", out, "--outtype", "f16", "--model-name", name),
            environment=environment,
        )
    if done.returncode or not out.is_file():
        out.unlink(missing_ok=True)
        log = (done.stderr + done.stdout).replace(f"{staged}/", "")
        raise SoftshardsError(
            f"llama.cpp's converter refuses the model: {_reason(log)}",
            path=model,
            hint="a newer llama.cpp may know it (--llama-cpp DIR); --to int8 exports for vLLM",
        )


def add_earlier_names(path: Path) -> None:
    """Write settings also by the names that transformers had for them, which the converter reads.

    Without `model_type`, it reads the file itself, and not what transformers makes of it: that has
    the present names alone.

    Args:
        path: config.json, a link to the student's: replaced by a file where names are missing.
    """
    content = parse_object(path.read_bytes())
    rope = content.get("rope_parameters")
    known = content | (rope if isinstance(rope, dict) else {})
    names = EARLIER_NAMES.get(str(content.get("model_type")), {})
    earlier = {
        name: known[now] for name, now in names.items() if name not in content and now in known
    }
    if earlier:
        del content["model_type"]
        path.unlink()
        path.write_text(json.dumps(content | earlier), encoding="utf-8")


def _check_tokenizer_code(model: Path) -> None:
    path = model / "tokenizer_config.json"
    try:
        content = parse_object(path.read_bytes()) if path.is_file() else {}
    except ValueError as error:
        raise SoftshardsError(f"not JSON: {first_line(error)}", path=path) from error
    if content.get("auto_map"):
        raise SoftshardsError(
            "the tokenizer needs code of its own (`auto_map`), which is never run here", path=path
        )


def _reason(log: str) -> str:
    """Return the converter's reason in one line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    last = lines[-1] if lines else "it gave no reason"
    line = next((line for line in reversed(lines) if line.startswith("ERROR:")), last)
    line = line.removeprefix("ERROR:hf-to-gguf:")
    for known, reason in REASONS.items():
        if known in line:
            return reason.format(line=line)
    return line
