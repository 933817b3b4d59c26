"""The process in which llama.cpp runs a GGUF file: a crash there is an error here.

`python -m trainer.export.llama_cpp_child JOB OUT` answers a `Job`, reports labels done on stdout,
one number per line, and writes `Findings` to OUT. For each label it asks for the one token that is
actual, forced by a bias that does not enter the log-probabilities; what was read before is cached.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Protocol, cast

from pydantic import JsonValue

from trainer.export.speed_load import REPEATS
from trainer.record import Record

FORCED = 1e9


class Job(Record):
    """What to run.

    Attributes:
        gguf: the file.
        threads: of llama.cpp.
        rows: token ids, and the positions to ask for.
        texts: to tokenize.
        timed: tokens to read and to generate for a measurement of speed; None leaves it out.
    """

    gguf: str
    threads: int
    rows: list[tuple[list[int], list[int]]]
    texts: list[str]
    timed: tuple[int, int] | None


class Findings(Record):
    """What came out.

    Attributes:
        runtime: name and version of the binding.
        logprobs, top: of each row at its positions.
        texts: ids of each text.
        score, generate: tokens per second of each repeat.
    """

    runtime: str
    logprobs: list[list[float]]
    top: list[list[int]]
    texts: list[list[int]]
    score: list[float]
    generate: list[float]


class _Server(Protocol):
    listening_address: str

    def handle_completions(self, request: dict[str, object]) -> dict[str, JsonValue]: ...


def main(job_path: Path, out: Path) -> None:
    """Answer a job."""
    job = Job.read(job_path, "a job")
    server = _start(job)
    found = Findings(
        runtime=f"xllamacpp {version('xllamacpp')}",
        logprobs=[], top=[], texts=[], score=[], generate=[],
    )  # fmt: skip
    for tokens, positions in job.rows:
        answers = [_ask(server, tokens, position) for position in positions]
        found.logprobs.append([logprob for logprob, _ in answers])
        found.top.append([top for _, top in answers])
        print(len(positions), flush=True)
    found.texts = [_tokenize(server, text) for text in job.texts]
    if job.timed is not None:
        read, generated = job.timed
        prompt = (job.rows[0][0] * read)[:read]
        for _ in range(REPEATS):
            score, generate = _time(server, prompt, generated)
            found.score.append(score)
            found.generate.append(generate)
    found.write(out)


def _start(job: Job) -> _Server:
    xllamacpp = import_module("xllamacpp")  # an extension, whose names no type checker sees
    params = xllamacpp.CommonParams()
    params.model.path = job.gguf
    longest = max(sum(job.timed or ()), *(len(tokens) for tokens, _ in job.rows))
    params.n_ctx = longest + 8
    params.n_parallel = 1
    # Nothing is kept of earlier rows: with sliding windows, the server resumes from their states.
    params.swa_full = True
    params.n_ctx_checkpoints = params.cache_ram_mib = 0
    params.ui = params.warmup = False
    params.verbosity = -1
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = job.threads
        cpu.poll = 0  # waiting threads would take the CPU from the others
    return cast(_Server, xllamacpp.Server(params))


def _complete(server: _Server, request: dict[str, object]) -> dict[str, JsonValue]:
    reply = server.handle_completions(request)
    if "error" in reply:
        raise ValueError(f"it answers {json.dumps(reply['error'])}")
    return reply


def _ask(server: _Server, tokens: list[int], position: int) -> tuple[float, int]:
    """Return the log-probability of the token at a position, and the most likely id there."""
    reply = _complete(
        server,
        {
            "prompt": tokens[:position],
            "n_predict": 1,
            "n_probs": 1,
            "temperature": 0,
            "cache_prompt": True,
            "logit_bias": [[tokens[position], FORCED]],
        },
    )
    found = _Reply.model_validate(reply).choices[0].logprobs.content[0]
    if found.id != tokens[position]:
        raise ValueError(f"llama.cpp sampled {found.id}, not the forced {tokens[position]}")
    return found.logprob, found.top_logprobs[0].id


class _Top(Record):
    id: int


class _Token(Record):
    id: int
    logprob: float
    top_logprobs: list[_Top]


class _Logprobs(Record):
    content: list[_Token]


class _Choice(Record):
    logprobs: _Logprobs


class _Reply(Record):
    choices: list[_Choice]


class _Timings(Record):
    prompt_per_second: float
    predicted_per_second: float


class _Timed(Record):
    timings: _Timings


def _time(server: _Server, prompt: list[int], generated: int) -> tuple[float, float]:
    """Return the tokens read and generated per second."""
    reply = _complete(
        server,
        {
            "prompt": prompt,
            "n_predict": generated,
            "ignore_eos": True,
            "temperature": 0,
            "cache_prompt": False,
        },
    )
    timings = _Timed.model_validate(reply).timings
    return timings.prompt_per_second, timings.predicted_per_second


def _tokenize(server: _Server, text: str) -> list[int]:
    body = json.dumps({"content": text, "add_special": False, "parse_special": True})
    request = urllib.request.Request(
        f"{server.listening_address}/tokenize",
        body.encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as reply:
        return _Tokens.model_validate_json(reply.read()).tokens


class _Tokens(Record):
    tokens: list[int]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
