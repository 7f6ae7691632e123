"""What vLLM's worker learns on top: to take weights as numpy arrays, and to keep hidden
states.

Both wherever the worker runs. Axes: L tokens of a sequence, D width of the model.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from topd_ray.engines.protocols import NamedArray
from topd_ray.engines.tensors import seen_as_torch
from topd_ray.errors import TopdError

SCORING = "score:"
"""How the id of a request begins whose hidden states are kept. vLLM appends to an id,
no more.
"""


class WorkerExtension:
    """Mixed into vLLM's worker by `worker_extension_cls`; vLLM calls it by name."""

    # The worker's own; `reload_weights` shards, fuses and repacks as at start, in the
    # same memory.
    reload_weights: Any
    model_config: Any
    model_runner: Any
    rank: int

    def receive_weights(self, weights: Sequence[NamedArray]) -> None:
        """Replace the weights in place."""
        self.reload_weights(
            weights_iterator=((n, seen_as_torch(array)) for n, array in weights)
        )
        if self.model_config.hf_text_config.tie_word_embeddings:
            _repack_head(self.model_runner.get_model())

    def keep_states(self) -> None:
        """From now on keep the hidden states of scoring requests; called once, at
        start.
        """
        if (
            self.rank == 0
        ):  # behind the final norm every rank of tensor parallel has them whole
            self.kept_states = KeptStates()
            self.model_runner.execute_model = self.kept_states.behind(self.model_runner)

    def take_states(self, request_id: str, length: int) -> NDArray[Any] | None:
        """(length, D) of a request that has finished, as float32 or bits of bfloat16;
        rank 0's.
        """
        return self.kept_states.take(request_id, length) if self.rank == 0 else None

    def drop_states(self, request_ids: Sequence[str]) -> None:
        """Forget requests that were aborted."""
        if self.rank == 0:
            self.kept_states.drop(request_ids)


class KeptStates:
    """Hidden states of scoring requests, in the pieces in which they were computed."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[tuple[int, torch.Tensor]]] = {}

    def behind(self, runner: Any) -> Any:
        """The runner's `execute_model`, with a look at what it leaves for
        `sample_tokens`.

        Both of vLLM's runners (V1, V2) put the state after the final norm of all tokens
        of a step into `execute_model_state`, whether the model ran eager, compiled or
        as a CUDA graph.
        """
        execute_model = runner.execute_model

        def watched(scheduler_output: Any, *rest: Any, **options: Any) -> Any:
            output = execute_model(scheduler_output, *rest, **options)
            state = runner.execute_model_state
            if state is not None and state.hidden_states is not None:
                batch = getattr(state, "input_batch", None) or runner.input_batch
                self.keep(scheduler_output, batch.req_ids, state.hidden_states)
            return output

        return watched

    def keep(
        self, scheduled: Any, request_ids: Sequence[str], states_TD: torch.Tensor
    ) -> None:
        """Copy the rows of scoring requests; T scheduled tokens, in the order of
        `request_ids`.
        """
        end, computed = 0, dict(_computed(scheduled))
        for request_id in request_ids:
            start, end = end, end + scheduled.num_scheduled_tokens[request_id]
            if request_id.startswith(SCORING):
                # In stream order, so before the next step may overwrite the buffer of a
                # graph.
                rows_LD = torch.empty_like(
                    states_TD[start:end], device="cpu", pin_memory=states_TD.is_cuda
                ).copy_(states_TD[start:end], non_blocking=True)
                self._pieces.setdefault(request_id, []).append(
                    (computed[request_id], rows_LD)
                )

    def take(self, request_id: str, length: int) -> NDArray[Any]:
        """(length, D) of one request; later pieces win, as after a preemption."""
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        pieces = self._pieces.pop(request_id, [])
        covered_L = np.zeros(length, bool)
        for start, rows_LD in pieces:
            covered_L[start : start + len(rows_LD)] = True
        if not covered_L.all():
            raise TopdError(
                f"request {request_id}: vLLM computed {int(covered_L.sum())} of"
                f" {length} hidden states; this model runner does not hand over the"
                " others"
            )
        states_LD = pieces[0][1].new_empty(length, pieces[0][1].shape[1])
        for start, rows_LD in pieces:
            states_LD[start : start + len(rows_LD)] = rows_LD[: length - start]
        if states_LD.dtype == torch.bfloat16:
            return states_LD.view(torch.int16).numpy().view(np.uint16)
        return states_LD.float().numpy()

    def drop(self, request_ids: Sequence[str]) -> None:
        """Forget these requests."""
        for request_id in request_ids:
            self._pieces.pop(request_id, None)


def _repack_head(model: Any) -> None:
    """A tied head is sent no weight, so vLLM 0.32 leaves the copy that it repacks on
    CPU as it was.

    Without this, new embeddings would be read out with the old ones. The embedding was
    repacked a moment ago, though nothing multiplies with it: the head takes that copy
    over.
    """
    head = model.lm_head
    for layer in model.modules():
        if layer is not head and getattr(layer, "weight", None) is head.weight:
            if hasattr(layer, "cpu_linear"):
                head.cpu_linear = layer.cpu_linear
            return


def _computed(scheduled: Any) -> Iterator[tuple[str, int]]:
    """How many tokens of each scheduled request lie behind it already."""
    for request in scheduled.scheduled_new_reqs:
        yield request.req_id, request.num_computed_tokens
    cached = scheduled.scheduled_cached_reqs
    yield from zip(cached.req_ids, cached.num_computed_tokens, strict=True)


__all__ = ["SCORING", "KeptStates", "WorkerExtension"]
