"""What vLLM's worker learns on top: to take weights as numpy arrays, wherever the worker runs."""

from collections.abc import Sequence
from typing import Any

from topd_ray.engines.protocols import NamedArray
from topd_ray.engines.tensors import to_torch


class WeightReceiver:
    """Mixed into vLLM's worker by `worker_extension_cls`; vLLM calls it by name."""

    # The worker's own; `reload_weights` shards, fuses and repacks as at start, in the same memory.
    reload_weights: Any
    model_config: Any
    model_runner: Any

    def receive_weights(self, weights: Sequence[NamedArray]) -> None:
        """Replace the weights in place."""
        self.reload_weights(weights_iterator=((name, to_torch(array)) for name, array in weights))
        if self.model_config.hf_text_config.tie_word_embeddings:
            # A tied head is sent no weight, so vLLM 0.32 leaves the copy that it repacks on CPU
            # as it was: without this, new embeddings would be read out with the old ones.
            head = self.model_runner.get_model().lm_head
            head.quant_method.process_weights_after_loading(head)


__all__ = ["WeightReceiver"]
