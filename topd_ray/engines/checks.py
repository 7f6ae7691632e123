"""Requests and weights that every back end refuses, with the same errors."""

from collections.abc import Iterable, Sequence

from topd_ray.engines.protocols import GenerationRequest, NamedArray
from topd_ray.errors import UserError, WeightsError
from topd_ray.messages import Ints
from topd_ray.models.facts import HEAD, Shapes

ENDED = "a later call of the same engine ended this generation"


def check_requests(requests: Sequence[GenerationRequest], max_model_len: int) -> None:
    """Raise UserError for a request that is empty or longer than the context."""
    for request in requests:
        if len(request.prompt_ids) == 0:
            raise UserError(f"request {request.request_id}: the prompt is empty")
        if request.max_tokens < 1:
            raise UserError(
                f"request {request.request_id}: max_tokens={request.max_tokens}; ask"
                " for at least 1"
            )
        total = len(request.prompt_ids) + request.max_tokens
        if total > max_model_len:
            raise UserError(
                f"request {request.request_id}: prompt {len(request.prompt_ids)} +"
                f" max_tokens {request.max_tokens} = {total} exceeds"
                f" max_model_len={max_model_len}; raise the engine's max_model_len or"
                " ask for less"
            )


def check_sequences(sequences: Sequence[Ints], max_model_len: int) -> None:
    """Raise UserError for a sequence that is empty or longer than the context."""
    for index, sequence in enumerate(sequences):
        if len(sequence) == 0:
            raise UserError(f"sequence {index}: it is empty")
        if len(sequence) > max_model_len:
            raise UserError(
                f"sequence {index}: {len(sequence)} tokens exceed"
                f" max_model_len={max_model_len}; raise the engine's max_model_len"
            )


def whole_weights(weights: Iterable[NamedArray], expected: Shapes) -> list[NamedArray]:
    """Return exactly the weights expected, each once.

    A head is left out where none is expected. Raises WeightsError with the name of the
    first weight that is missing, unknown or of another shape.
    """
    given = {name: array for name, array in weights if name != HEAD or name in expected}
    for name, shape in expected.items():
        if name not in given:
            raise WeightsError(
                f"weight {name} is missing: an engine takes all weights or none"
            )
        if given[name].shape != shape:
            raise WeightsError(
                f"weight {name} has shape {given[name].shape}, the model has {shape}"
            )
    unknown = next((name for name in given if name not in expected), None)
    if unknown is not None:
        raise WeightsError(
            f"weight {unknown} is unknown to the model; use Hugging Face names"
        )
    return list(given.items())


__all__ = ["ENDED", "check_requests", "check_sequences", "whole_weights"]
