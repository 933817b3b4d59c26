"""A served teacher: labels from a running server of the completions API.

A vLLM server names ids and returns as many logprobs as it was started for. Any other server returns
at most 20 per position, as text (`--server-api openai`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import openai

from labeler.labeling.engines.capture import DERIVED_TAIL, CaptureError, labels_from_rows, positions
from labeler.labeling.engines.engine import EngineFacts, Failed, Labeled, Request
from labeler.labeling.engines.served.client import (
    MOST_BY_TEXT,
    as_server_error,
    client_arguments,
    error_message,
    model_card,
    too_many_logprobs,
)
from labeler.labeling.engines.served.request_bodies import RequestBodies
from labeler.labeling.engines.served.responses import (
    Rows,
    check_answer,
    generated_by_id,
    generated_by_text,
    scored_by_id,
    scored_by_text,
    token_texts,
)
from labeler.labeling.engines.served.server_checks import (
    LEAST_TOP,
    PLAIN,
    PROBE,
    SHARPENED,
    check_raw,
    check_scores,
    check_tokens,
    head_size,
    require_abilities,
)
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.rendering.spans import Span
from labeler.labeling.teacher.teacher import Teacher
from schemas import Sampling, SoftshardsError
from schemas.redact import redacted

LIMITED_TAIL = f"OpenAI-style endpoint, top {MOST_BY_TEXT}, matched by text; {DERIVED_TAIL}"


class ServedEngine:
    """A teacher behind a URL; at most `config.concurrency` requests are in flight.

    Raises:
        SoftshardsError: the server does not answer, refuses, serves another tokenizer than the
            teacher's, or returns logprobs that are not raw T = 1 ones.
    """

    def __init__(
        self, teacher: Teacher, config: LabelConfig, *, dtype: str, head_dtype: str, k: int
    ) -> None:
        self._teacher, self._config, self._k = teacher, config, k
        self._sampling = config.sampling
        card = model_card(config)
        self._model = card["id"]
        require_abilities(config, card)
        by_id = config.server_api == "vllm"
        heads = head_size(teacher) if by_id else teacher.vocab_size
        self._bodies = RequestBodies(
            by_id=by_id,
            # Padding ids of the head may be among the top: request as many more.
            top=min(max(k, LEAST_TOP) + heads - teacher.vocab_size, heads),
            padding=range(teacher.vocab_size, heads),
            stop_ids=teacher.stop_ids,
        )
        self._known = None if by_id else token_texts(teacher.tokenizer, teacher.vocab_size)
        self._runner = asyncio.Runner()
        self._client = openai.AsyncOpenAI(**client_arguments(config))
        try:
            version = self._runner.run(self._check(head_dtype))
        except BaseException:
            self.close()
            raise
        self.facts = EngineFacts(
            name="served",
            version=version,
            device="server",
            dtype=dtype,
            head_dtype=head_dtype,
            tail_source=DERIVED_TAIL if by_id else LIMITED_TAIL,
            entropy_source="top-k and tail",
            settings={
                "url": redacted(config.server_url or ""),
                "api": config.server_api,
                "concurrency": config.concurrency,
                "dtypes": "as the user stated them; a server does not tell",
                **card,
            },
        )

    def run(self, requests: Sequence[Request]) -> Iterator[Labeled | Failed]:
        """Label `requests`; see `engine.Engine`."""
        loop = self._runner.get_loop()
        waiting = iter(requests)
        in_flight: set[asyncio.Task[Labeled | Failed]] = set()
        try:
            while True:
                room = self._config.concurrency - len(in_flight)
                for request in itertools.islice(waiting, room):
                    in_flight.add(loop.create_task(self._answer(request)))
                if not in_flight:
                    return
                some = asyncio.wait(in_flight, return_when=asyncio.FIRST_COMPLETED)
                done, _ = self._runner.run(some)
                for task in done:
                    in_flight.remove(task)
                    yield task.result()
        finally:
            for task in in_flight:
                task.cancel()
            self._runner.run(_settled(in_flight))

    def output_head(self) -> NoReturn:
        """Refuse: the settings never ask a server for hidden states."""
        raise SoftshardsError("a server does not give its teacher's head")

    def close(self) -> None:
        """Close the connections."""
        self._runner.run(self._client.close())
        self._runner.close()

    async def _answer(self, request: Request) -> Labeled | Failed:
        try:
            if self._sampling is None:
                return await self._score(request, request.input_ids, request.spans, None)
            return await self._generate(request, self._sampling)
        except CaptureError as error:
            return Failed(request=request, reason=str(error))
        except openai.OpenAIError as error:
            if await self._request_is_bad(error):
                return Failed(request=request, reason=f"the server refuses: {error_message(error)}")
            raise SoftshardsError(
                f"the engine failed: {as_server_error(error, self._config.server_url).what}",
                path=self._config.server_url,
                hint="finished units are safe: check the server, then run the same command again",
            ) from error

    async def _request_is_bad(self, error: openai.OpenAIError) -> bool:
        """Return whether the request is at fault, not the server.

        It is if the server refuses it, or fails on it but still answers another.
        """
        status = error.status_code if isinstance(error, openai.APIStatusError) else None
        if status in (400, 413, 422):
            return not too_many_logprobs(error)
        if status != 500:
            return False
        try:
            await self._complete({"prompt": PROBE, "max_tokens": 1})
        except openai.OpenAIError:
            return False
        return True

    async def _check(self, head_dtype: str) -> str:
        """Run `server_checks`; return the server's version, as far as it tells."""
        try:
            return await self._checked(head_dtype)
        except openai.OpenAIError as error:
            raise as_server_error(error, self._config.server_url, top=self._bodies.top) from error
        except CaptureError as error:
            raise SoftshardsError(
                f"the server fails the start-up check: {error}",
                path=self._config.server_url,
                hint="check that --model is the folder of the served model, and --server-api",
            ) from error

    async def _checked(self, head_dtype: str) -> str:
        url, bodies = self._config.server_url, self._bodies
        ids = self._teacher.encode_continuation(PROBE)
        if bodies.by_id:
            text = {"prompt": PROBE, "add_special_tokens": False}
            choice = await self._complete(bodies.score(ids) | text)
            with check_answer():
                check_tokens(ids, choice["prompt_token_ids"], url)
        if bodies.by_id or self._sampling is None:
            choice = await self._complete(bodies.score(ids))
            check_scores(self._scored(choice, ids, range(1, len(ids))), head_dtype, url)
        if self._sampling is not None:
            plain = await self._complete(bodies.generate(ids, PLAIN, seed=0))
            choice = await self._complete(bodies.generate(ids, SHARPENED, seed=0))
            with check_answer():
                tops = [c["logprobs"]["top_logprobs"][0] for c in (plain, choice)]
                check_raw(tops[0], tops[1], url)
        return str(choice["fingerprint"] or "unknown")

    async def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the first choice of a completion, with the server's fingerprint."""
        body = {"model": self._model} | body
        answer: Any = await self._client.post("/completions", cast_to=object, body=body)
        with check_answer():
            return {**answer["choices"][0], "fingerprint": answer.get("system_fingerprint")}

    async def _score(
        self,
        request: Request,
        ids: list[int],
        spans: tuple[Span, ...],
        finish_reason: str | None,
    ) -> Labeled:
        choice = await self._complete(self._bodies.score(ids))
        rows = self._scored(choice, ids, positions(spans).tolist())
        return self._labeled(request, ids, spans, rows, finish_reason)

    async def _generate(self, request: Request, sampling: Sampling) -> Labeled:
        body = self._bodies.generate(request.input_ids, sampling, request.seed)
        choice = await self._complete(body)
        with check_answer():
            ids, rows = self._generated(choice)
            reason = choice["finish_reason"]
        if not ids or reason not in ("stop", "length"):
            raise CaptureError(f"nothing was generated ({reason})")
        whole = request.input_ids + ids
        spans = (Span(start=len(request.input_ids), stop=len(whole), kind="answer"),)
        if sampling.structured:  # the constraint has changed these logprobs
            return await self._score(request, whole, spans, reason)
        return self._labeled(request, whole, spans, rows, reason)

    def _scored(self, choice: dict[str, Any], ids: list[int], where: Sequence[int]) -> Rows:
        with check_answer():
            if self._known is None:
                return scored_by_id(choice, ids, where, self._bodies.top)
            return scored_by_text(choice, ids, where, self._bodies.top, self._known)

    def _generated(self, choice: dict[str, Any]) -> tuple[list[int], Rows]:
        if self._known is None:
            return generated_by_id(choice, self._bodies.top)
        return generated_by_text(choice, self._bodies.top, self._known, self._teacher.tokenizer)

    def _labeled(
        self,
        request: Request,
        ids: list[int],
        spans: tuple[Span, ...],
        rows: Rows,
        finish_reason: str | None,
    ) -> Labeled:
        tokens = np.asarray(ids, np.int32)[positions(spans)]
        return Labeled(
            request=request,
            input_ids=ids,
            spans=spans,
            labels=labels_from_rows(*rows, tokens, k=self._k, vocab_size=self._teacher.vocab_size),
            finish_reason=finish_reason,
        )


async def _settled(tasks: set[asyncio.Task[Any]]) -> None:
    """Wait until canceled tasks have released their connections."""
    await asyncio.gather(*tasks, return_exceptions=True)
