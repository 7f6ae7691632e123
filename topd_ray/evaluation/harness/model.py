"""Make a generation engine a model of lm-evaluation-harness, with a seed a sample.

The harness's wrappers send one seed to all requests, so all samples of a problem could
be the same. They also need packages that we do not (accelerate, peft), or a
distribution called `vllm`, which a CPU build is not. This model runs on the engines
that training uses, with their settings.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs

from topd_ray.contexts import ChatTemplate
from topd_ray.engines.protocols import Generation, GenerationEngine, GenerationRequest
from topd_ray.errors import TopdError, UserError
from topd_ray.seeds import derive_seed

# In tokens of context.
LENGTH_STEP = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One sample of one problem, as the harness received it."""

    prompt: str
    """Text of the prompt, under the chat template."""
    text: str
    """Text of the response, without special tokens, cut before a stop string."""
    seed: int
    num_tokens: int
    max_tokens: int
    truncated: bool
    """The response reached `max_tokens`."""


class LastingEngine:
    """One engine for all tasks, opened at the first request.

    It is opened again where a task needs a longer context than the tasks before it.
    `context` is the model's limit: tokens of a prompt and its response together.
    """

    def __init__(
        self, open_engine: Callable[[int], GenerationEngine], *, context: int
    ) -> None:
        self._open = open_engine
        self.context = context
        self._engine: GenerationEngine | None = None
        self._length = 0

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        """Yield each generation as soon as it is finished."""
        needed = max(
            len(request.prompt_ids) + request.max_tokens for request in requests
        )
        if self._engine is None or needed > self._length:
            self.close()
            # Rounded up: the next task's prompts may be a little longer, and loading
            # the model again takes minutes.
            self._length = min(
                self.context, math.ceil(needed / LENGTH_STEP) * LENGTH_STEP
            )
            self._engine = self._open(self._length)
        return self._engine.generate(requests)

    def close(self) -> None:
        """Free the engine, if one was opened."""
        if self._engine is not None:
            self._engine.close()
        self._engine = None
        self._length = 0


class EngineModel(LM):  # type: ignore[misc]  # the harness has no types
    """Answers the requests of one task; `responses` keeps seeds and token counts.

    The harness takes strings only, so those facts have no place in what it gets.
    """

    def __init__(
        self,
        engine: LastingEngine,
        folder: Path,
        *,
        seed: int,
        chat: ChatTemplate | None,
        may_shorten: bool,
    ) -> None:
        """Take the chat template, or load the tokenizer in `folder` where it is None.

        Without `chat`, a prompt is plain text to continue, not turns of a conversation.
        With `may_shorten`, a response limit that exceeds the context is lowered.
        """
        from transformers import AutoTokenizer

        super().__init__()
        self._engine = engine
        self._seed = seed
        self._chat = chat
        self._may_shorten = may_shorten
        self._tokenizer = (
            AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            if chat is None
            else chat.tokenizer
        )
        self.responses: dict[int, list[Response]] = {}
        """Responses of each document id, in the order of the samples."""

    @property
    def tokenizer_name(self) -> str:
        """Return a name for the harness's request cache, which is not used."""
        return str(self._tokenizer.name_or_path)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return the prompt's text, under the template and its variables."""
        assert self._chat is not None, "a task of plain text has no turns"
        name = f"{chat_history[-1]['content']:.60}"
        for turn in chat_history:
            token = self._chat.control_token(turn["content"])
            if token is not None:
                raise UserError(
                    f"problem {name!r}: {token!r} in its text would become a control"
                    " token; rewrite it, e.g. with a blank inside"
                )
        return self._chat.text(
            [(turn["role"], turn["content"]) for turn in chat_history],
            prompt_id=name,
            opens_turn=add_generation_prompt,
            continues=not add_generation_prompt,
        )

    def generate_until(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[str]:
        """Return one string a request, in order.

        A document occurs as often as it is to be sampled.
        """
        engine_requests = self._requests(requests)
        done: dict[str, Generation] = {}
        for generation in _shown(
            self._engine.generate(engine_requests),
            len(engine_requests),
            hide=disable_tqdm,
        ):
            done[generation.request_id] = generation
        texts = []
        for instance, request in zip(requests, engine_requests, strict=True):
            response = self._response(instance, request, done[request.request_id])
            self.responses.setdefault(instance.doc_id, []).append(response)
            texts.append(response.text)
        return texts

    def _requests(self, instances: Sequence[Instance]) -> list[GenerationRequest]:
        # The samples of a problem share its prompt, which is tokenised once.
        token_ids = {
            text: self._tokens(text)
            for text in {instance.args[0] for instance in instances}
        }
        num_samples: Counter[int] = Counter()
        requests = []
        for instance in instances:
            text = instance.args[0]
            options = normalize_gen_kwargs(instance.args[1])
            sample = num_samples[instance.doc_id]
            num_samples[instance.doc_id] += 1
            request_id = f"{instance.task_name}/{instance.doc_id}/{sample}"
            requests.append(
                GenerationRequest(
                    request_id=request_id,
                    prompt_ids=np.asarray(token_ids[text], np.int32),
                    max_tokens=self._limit(request_id, len(token_ids[text]), options),
                    temperature=options["temperature"],
                    top_p=options.get("top_p", 1.0),
                    seed=derive_seed(self._seed, request_id, "evaluation"),
                    num_top=0,
                )
            )
        return requests

    def _tokens(self, text: str) -> list[int]:
        # A chat template writes the special tokens itself.
        ids: list[int] = self._tokenizer(text, add_special_tokens=self._chat is None)[
            "input_ids"
        ]
        return ids

    def _limit(self, request_id: str, num_prompt: int, options: dict[str, Any]) -> int:
        limit = int(options["max_gen_toks"])
        room = self._engine.context - num_prompt
        if room < 1:
            raise UserError(
                f"{request_id}: the prompt's {num_prompt} tokens fill the model's"
                f" context of {self._engine.context}; leave the problem out"
            )
        if limit > room and not self._may_shorten:
            raise UserError(
                f"{request_id}: --max-tokens {limit} after a prompt of {num_prompt}"
                f" tokens exceeds the model's context of {self._engine.context}; lower"
                f" it to {room} or leave it out"
            )
        return min(limit, room)

    def _response(
        self, instance: Instance, request: GenerationRequest, generation: Generation
    ) -> Response:
        text: str = self._tokenizer.decode(
            generation.token_ids_N.tolist(), skip_special_tokens=True
        )
        until = normalize_gen_kwargs(instance.args[1])["until"]
        # Engines know no stop strings, so the text is cut afterwards.
        stops = [text.index(stop) for stop in until if stop in text]
        return Response(
            prompt=instance.args[0],
            text=text[: min(stops)] if stops else text,
            seed=request.seed,
            num_tokens=len(generation.token_ids_N),
            max_tokens=request.max_tokens,
            truncated=generation.finish_reason == "length" and not stops,
        )

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Raise TopdError: the engines generate text only."""
        raise TopdError(
            f"{requests[0].task_name}: our engines generate, they score no choices"
        )

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Raise TopdError: the engines generate text only."""
        raise TopdError(
            f"{requests[0].task_name}: our engines generate, they score no texts"
        )


def _shown(
    generations: Iterator[Generation], total: int, *, hide: bool
) -> Iterator[Generation]:
    """Yield the same generations; show a progress bar where stderr is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(
        generations,
        description="responses",
        total=total,
        console=console,
        transient=True,
        disable=hide or not console.is_terminal,
    )


__all__ = ["EngineModel", "LastingEngine", "Response"]
