"""A served teacher: labels from a running server of the completions API.

A vLLM server names ids and gives as many logprobs as it was started for; any other gives at most 20
a position, as text (`--server-api openai`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from labeler.labeling.engines.capture import DERIVED_TAIL, CaptureError, labels_from_rows, positions
from labeler.labeling.engines.engine import EngineFacts, Failed, Labeled, Request
from labeler.labeling.engines.served.client import (
    MOST_BY_TEXT,
    client_arguments,
    explained,
    message_of,
    model_card,
    openai,
    too_many_logprobs,
)
from labeler.labeling.engines.served.request_bodies import Asking
from labeler.labeling.engines.served.responses import (
    Rows,
    answer_checked,
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
        self._asking = Asking(
            by_id=by_id,
            # Ids of the head that are no tokens may be among the top: ask for as many more.
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
                "url": config.server_url,
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
        flying: set[asyncio.Task[Labeled | Failed]] = set()
        try:
            while True:
                room = self._config.concurrency - len(flying)
                for request in itertools.islice(waiting, room):
                    flying.add(loop.create_task(self._answer(request)))
                if not flying:
                    return
                some = asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
                done, _ = self._runner.run(some)
                for task in done:
                    flying.remove(task)
                    yield task.result()
        finally:
            for task in flying:
                task.cancel()
            self._runner.run(_settled(flying))

    def close(self) -> None:
        """Close the connections."""
        self._runner.run(self._client.close())
        self._runner.close()

    async def _answer(self, request: Request) -> Labeled | Failed:
        try:
            if self._sampling is None:
                return await self._score(request, None)
            return await self._generate(request, self._sampling)
        except CaptureError as error:
            return Failed(request=request, reason=str(error))
        except openai.OpenAIError as error:
            if await self._is_to_blame(error):
                return Failed(request=request, reason=f"the server refuses: {message_of(error)}")
            raise SoftshardsError(
                f"the engine failed: {explained(error, self._config).what}",
                path=self._config.server_url,
                hint="finished units are safe: see to the server, and the same command goes on "
                "from there",
            ) from error

    async def _is_to_blame(self, error: openai.OpenAIError) -> bool:
        """Whether it was this request that failed, and not the server.

        A request that the server would not take, or at which it fails while it answers another.
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
        """Put the server through `served_checks`; return what it says of its version."""
        try:
            return await self._checked(head_dtype)
        except openai.OpenAIError as error:
            raise explained(error, self._config, asked=self._asking.top) from error
        except CaptureError as error:
            raise SoftshardsError(
                f"the server fails the check before the start: {error}",
                path=self._config.server_url,
                hint="is --model the folder of the served model, and --server-api right?",
            ) from error

    async def _checked(self, head_dtype: str) -> str:
        url, ask = self._config.server_url, self._asking
        ids = self._teacher.encode_more(PROBE)
        if ask.by_id:
            text = {"prompt": PROBE, "add_special_tokens": False}
            choice = await self._complete(ask.score(ids) | text)
            with answer_checked():
                check_tokens(ids, choice["prompt_token_ids"], url)
        if ask.by_id or self._sampling is None:
            choice = await self._complete(ask.score(ids))
            check_scores(self._scored(choice, ids, range(1, len(ids))), head_dtype, url)
        if self._sampling is not None:
            plain = await self._complete(ask.generate(ids, PLAIN, seed=0))
            choice = await self._complete(ask.generate(ids, SHARPENED, seed=0))
            with answer_checked():
                tops = [c["logprobs"]["top_logprobs"][0] for c in (plain, choice)]
                check_raw(tops[0], tops[1], url)
        return str(choice["fingerprint"] or "not told")

    async def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The first choice of a completion, and the server's fingerprint."""
        body = {"model": self._model} | body
        answer: Any = await self._client.post("/completions", cast_to=object, body=body)
        with answer_checked():
            return {**answer["choices"][0], "fingerprint": answer.get("system_fingerprint")}

    async def _score(self, request: Request, finish_reason: str | None) -> Labeled:
        choice = await self._complete(self._asking.score(request.input_ids))
        rows = self._scored(choice, request.input_ids, positions(request.spans).tolist())
        return self._labeled(request, rows, finish_reason)

    async def _generate(self, request: Request, sampling: Sampling) -> Labeled:
        body = self._asking.generate(request.input_ids, sampling, request.seed)
        choice = await self._complete(body)
        with answer_checked():
            ids, rows = self._generated(choice)
            reason = choice["finish_reason"]
        if not ids or reason not in ("stop", "length"):
            raise CaptureError(f"nothing was generated ({reason})")
        start = len(request.input_ids)
        span = Span(start=start, stop=start + len(ids), kind="answer")
        whole = replace(request, input_ids=request.input_ids + ids, spans=(span,))
        if sampling.structured:  # the constraint has gone into these logprobs
            return await self._score(whole, reason)
        return self._labeled(whole, rows, reason)

    def _scored(self, choice: dict[str, Any], ids: list[int], where: Sequence[int]) -> Rows:
        with answer_checked():
            if self._known is None:
                return scored_by_id(choice, ids, where, self._asking.top)
            return scored_by_text(choice, ids, where, self._asking.top, self._known)

    def _generated(self, choice: dict[str, Any]) -> tuple[list[int], Rows]:
        if self._known is None:
            return generated_by_id(choice, self._asking.top)
        return generated_by_text(choice, self._asking.top, self._known, self._teacher.tokenizer)

    def _labeled(self, request: Request, rows: Rows, finish_reason: str | None) -> Labeled:
        tokens = np.asarray(request.input_ids, np.int32)[positions(request.spans)]
        return Labeled(
            request=request,
            input_ids=request.input_ids,
            spans=request.spans,
            labels=labels_from_rows(*rows, tokens, k=self._k, vocab_size=self._teacher.vocab_size),
            finish_reason=finish_reason,
        )


async def _settled(tasks: set[asyncio.Task[Any]]) -> None:
    """Wait until cancelled tasks have let go of their connections."""
    await asyncio.gather(*tasks, return_exceptions=True)
