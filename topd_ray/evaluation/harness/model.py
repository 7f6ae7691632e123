"""A generation engine as a model of lm-evaluation-harness: text in, text out, a seed a
sample.

The harness's own wrappers send one seed to all requests (so all samples of a problem
could be the same), need packages we do not (accelerate, peft) or a distribution called
`vllm`, which a CPU build is not. Ours runs on the very engines that training uses, with
their settings.
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

from topd_ray.engines.protocols import Generation, GenerationEngine, GenerationRequest
from topd_ray.errors import TopdError, UserError
from topd_ray.seeds import derive_seed

LENGTH_STEP = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One sample of one problem, as the harness got it."""

    prompt: str
    """Text under the chat template."""
    text: str
    """Without special tokens, cut before the first stop string."""
    seed: int
    num_tokens: int
    max_tokens: int
    truncated: bool
    """It reached `max_tokens`."""


class LastingEngine:
    """One engine for all tasks: opened at the first request, anew for a longer context.

    `context`: most tokens of a prompt and its response together, as the model was made.
    """

    def __init__(
        self, open_engine: Callable[[int], GenerationEngine], *, context: int
    ) -> None:
        self._open, self.context = open_engine, context
        self._engine: GenerationEngine | None = None
        self._length = 0

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        """Yield each generation as soon as it is finished."""
        needed = max(
            len(request.prompt_ids) + request.max_tokens for request in requests
        )
        if self._engine is None or needed > self._length:
            self.close()
            # The next task's prompts may be a little longer: no reason to load the
            # model again.
            self._length = min(
                self.context, math.ceil(needed / LENGTH_STEP) * LENGTH_STEP
            )
            self._engine = self._open(self._length)
        return self._engine.generate(requests)

    def close(self) -> None:
        """Free the engine, if one was opened."""
        if self._engine is not None:
            self._engine.close()
        self._engine, self._length = None, 0


class EngineModel(LM):  # type: ignore[misc]  # the harness has no types
    """`generate_until` for one task; `responses` holds what its strings cannot
    carry.
    """

    def __init__(
        self,
        engine: LastingEngine,
        folder: Path,
        *,
        seed: int,
        chat: bool,
        may_shorten: bool,
    ) -> None:
        """Without `chat`, prompts are plain text to go on with, not turns of a
        conversation.

        With `may_shorten`, a response limit that does not fit the context is lowered to
        what does.
        """
        from transformers import AutoTokenizer

        super().__init__()
        self._engine, self._seed = engine, seed
        self._chat, self._may_shorten = chat, may_shorten
        self._tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        if chat and not self._tokenizer.chat_template:
            raise UserError(
                f"{folder}: its tokenizer has no chat template; give a chat model"
            )
        self.responses: dict[int, list[Response]] = {}
        """By document, in the order of the samples."""

    @property
    def tokenizer_name(self) -> str:
        """For the harness's request cache, which we do not use."""
        return str(self._tokenizer.name_or_path)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt's text, with the model's thinking mode off (as in training)."""
        from jinja2 import TemplateError

        try:
            text: str = self._tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                enable_thinking=False,
            )
        except TemplateError as error:
            raise UserError(
                f"problem {chat_history[-1]['content']!r:.80}: the model's chat"
                f" template refuses it: {error}"
            ) from None
        return text

    def generate_until(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[str]:
        """One string a request, in order; a document comes as often as it is to be
        sampled.
        """
        asked = self._requests(requests)
        done: dict[str, Generation] = {}
        for generation in _shown(
            self._engine.generate(asked), len(asked), hide=disable_tqdm
        ):
            done[generation.request_id] = generation
        texts = []
        for instance, request in zip(requests, asked, strict=True):
            response = self._response(instance, request, done[request.request_id])
            self.responses.setdefault(instance.doc_id, []).append(response)
            texts.append(response.text)
        return texts

    def _requests(self, instances: Sequence[Instance]) -> list[GenerationRequest]:
        token_ids = {
            text: self._tokens(text) for text in {i.args[0] for i in instances}
        }
        taken: Counter[int] = Counter()
        asked = []
        for instance in instances:
            text, options = instance.args[0], normalize_gen_kwargs(instance.args[1])
            request_id = (
                f"{instance.task_name}/{instance.doc_id}/{taken[instance.doc_id]}"
            )
            taken[instance.doc_id] += 1
            asked.append(
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
        return asked

    def _tokens(self, text: str) -> list[int]:
        # A chat template writes the special tokens itself.
        ids: list[int] = self._tokenizer(text, add_special_tokens=not self._chat)[
            "input_ids"
        ]
        return ids

    def _limit(self, request_id: str, num_prompt: int, options: dict[str, Any]) -> int:
        limit, room = int(options["max_gen_toks"]), self._engine.context - num_prompt
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
        """Raise TopdError: our tasks ask for text only."""
        raise TopdError(
            f"{requests[0].task_name}: our engines generate, they score no choices"
        )

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Raise TopdError: our tasks ask for text only."""
        raise TopdError(
            f"{requests[0].task_name}: our engines generate, they score no texts"
        )


def _shown(
    generations: Iterator[Generation], total: int, *, hide: bool
) -> Iterator[Generation]:
    """The same, with a progress bar where stderr is a terminal."""
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
