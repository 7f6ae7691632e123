"""An extension of vLLM's worker: it takes weights and keeps hidden states.

vLLM runs it in the worker's process. Axes: L tokens of a sequence, D width of the
model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from topd_ray.engines.protocols import NamedArray
from topd_ray.engines.tensors import view_as_torch
from topd_ray.errors import TopdError

SCORING = "score:"
DECODING = "states:"
"""Prefixes of the ids of requests whose hidden states are kept: of all tokens, and of
those that predict a decoded one.

vLLM appends to a request's id and leaves its beginning.
"""


class WorkerExtension:
    """Mixed into vLLM's worker by `worker_extension_cls`; vLLM calls it by name."""

    # Attributes of vLLM's worker. `reload_weights` shards, fuses and repacks the
    # weights as at the start, in the same memory.
    reload_weights: Any
    model_config: Any
    model_runner: Any
    rank: int

    def receive_weights(self, weights: Sequence[NamedArray]) -> None:
        """Replace the weights in place."""
        self.reload_weights(
            weights_iterator=((n, view_as_torch(array)) for n, array in weights)
        )
        repack_head(self.model_runner.get_model())

    def keep_to_ids(self, num_ids: int) -> None:
        """Take the logits of padding, rows behind `num_ids`, out of every distribution.

        Called once, at the start. Before log-probabilities are computed, which vLLM
        would normalise over the padding too if it were only forbidden to sample.
        """
        model = self.model_runner.get_model()
        compute_logits = model.compute_logits

        def kept(*arguments: Any, **options: Any) -> Any:
            logits_BV = compute_logits(*arguments, **options)
            if logits_BV is not None:  # a rank of tensor parallel without logits
                logits_BV[..., num_ids:] = -torch.inf
            return logits_BV

        model.compute_logits = kept

    def keep_states(self) -> None:
        """Keep the hidden states of scoring requests; called once, at the start."""
        # behind the final norm, every rank of tensor parallel holds whole states
        if self.rank == 0:
            self.kept_states = KeptStates()
            self.model_runner.execute_model = self.kept_states.behind(self.model_runner)

    def take_states(
        self, request_id: str, first: int, last: int
    ) -> NDArray[Any] | None:
        """Return the states of the tokens `first` to `last` of a finished request.

        They are (last - first, D), on rank 0 alone, float32 or the bits of bfloat16 in
        uint16.
        """
        if self.rank != 0:
            return None
        return self.kept_states.take(request_id, first, last)

    def drop_states(self, request_ids: Sequence[str]) -> None:
        """Drop the states of requests that were aborted."""
        if self.rank == 0:
            self.kept_states.drop(request_ids)


@dataclass(frozen=True, slots=True)
class StatesPiece:
    """Some tokens' hidden states on the CPU, or on their way there."""

    start: int
    """Index of the first token."""
    rows_LD: torch.Tensor
    copied: torch.Event | None
    """Happens when the rows are there; None where they are already."""


class KeptStates:
    """Hidden states of some requests, in the pieces in which they were computed."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[StatesPiece]] = {}

    def behind(self, runner: Any) -> Any:
        """Return the runner's `execute_model`, wrapped to keep hidden states.

        Both of vLLM's runners (V1, V2) put the state after the final norm of all tokens
        of a step into `execute_model_state`, whether the model ran eager, compiled or
        as a CUDA graph.
        """
        execute_model = runner.execute_model

        def watched(scheduler_output: Any, *rest: Any, **options: Any) -> Any:
            output = execute_model(scheduler_output, *rest, **options)
            if options.get("dummy_run"):  # of requests that were never added
                return output
            state = runner.execute_model_state
            if state is not None and state.hidden_states is not None:
                batch = getattr(state, "input_batch", None) or runner.input_batch
                self.keep(scheduler_output, batch.req_ids, state.hidden_states)
            return output

        return watched

    def keep(
        self, scheduled: Any, request_ids: Sequence[str], states_TD: torch.Tensor
    ) -> None:
        """Copy the rows of the requests whose states are kept.

        Args:
            scheduled: vLLM's scheduler output of the step.
            request_ids: The requests of the step, in the order of their rows.
            states_TD: Hidden states of the T scheduled tokens.
        """
        end = 0
        computed = dict(_computed(scheduled))
        for request_id in request_ids:
            start = end
            end = end + scheduled.num_scheduled_tokens[request_id]
            if request_id.startswith((SCORING, DECODING)):
                piece = _copied(computed[request_id], states_TD[start:end])
                self._pieces.setdefault(request_id, []).append(piece)

    def take(self, request_id: str, first: int, last: int) -> NDArray[Any]:
        """Return the states of the tokens `first` to `last` of a request; drop all.

        After a preemption vLLM computes tokens again; the later states are taken.
        """
        pieces = self._pieces.pop(request_id, [])
        covered_L = np.zeros(last, bool)
        covered_L[:first] = True
        for piece in pieces:
            covered_L[piece.start : piece.start + len(piece.rows_LD)] = True
        if not covered_L.all():
            raise TopdError(
                f"request {request_id}: vLLM computed {int(covered_L[first:].sum())} of"
                f" {last - first} hidden states; this model runner does not hand over"
                " the others"
            )
        states_LD = pieces[0].rows_LD.new_empty(last, pieces[0].rows_LD.shape[1])
        for piece in pieces:
            if piece.copied is not None:
                piece.copied.synchronize()
            end = piece.start + len(piece.rows_LD)
            states_LD[piece.start : end] = piece.rows_LD[: max(0, last - piece.start)]
        states_LD = states_LD[first:]
        if states_LD.dtype == torch.bfloat16:
            return states_LD.view(torch.int16).numpy().view(np.uint16)
        return states_LD.float().numpy()

    def drop(self, request_ids: Sequence[str]) -> None:
        """Drop the states of these requests."""
        for request_id in request_ids:
            self._pieces.pop(request_id, None)


def _copied(start: int, rows_LD: torch.Tensor) -> StatesPiece:
    """Return a copy on the CPU of rows that the next step may overwrite.

    On a GPU it is queued behind the model, and has an event for itself: a wait for the
    stream would be one for the next step too, which vLLM has queued by then.
    """
    on_cpu_LD = torch.empty_like(rows_LD, device="cpu", pin_memory=rows_LD.is_cuda)
    on_cpu_LD.copy_(rows_LD, non_blocking=True)
    if not rows_LD.is_cuda:
        return StatesPiece(start, on_cpu_LD, None)
    copied = torch.Event("cuda")
    copied.record()
    return StatesPiece(start, on_cpu_LD, copied)


def repack_head(model: Any) -> None:
    """Give a tied head the repacked copy of the new embedding, on CPU.

    Head and embedding are asked, not the config: vLLM reads a config as untied where
    the files hold a copy of the embedding as head, and ties the two after the load.

    A tied head receives no weight, so vLLM 0.32 keeps its repacked copy of the old
    embedding, and the logits would be those of the old head. `reload_weights` has
    repacked the embedding, although no product uses that copy: the head takes it.
    """
    head = getattr(model, "lm_head", None)
    if head is None:
        return
    for layer in model.modules():
        if layer is not head and getattr(layer, "weight", None) is head.weight:
            if hasattr(layer, "cpu_linear"):
                head.cpu_linear = layer.cpu_linear
            return


def _computed(scheduled: Any) -> Iterator[tuple[str, int]]:
    """Yield each scheduled request's id and number of tokens computed before."""
    for request in scheduled.scheduled_new_reqs:
        yield request.req_id, request.num_computed_tokens
    cached = scheduled.scheduled_cached_reqs
    yield from zip(cached.req_ids, cached.num_computed_tokens, strict=True)


__all__ = ["SCORING", "KeptStates", "WorkerExtension", "repack_head"]
