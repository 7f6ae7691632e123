"""Which layers of a student have adapters of low rank, known before it is loaded."""

from pathlib import Path

from topd_ray.config import LoraConfig
from topd_ray.errors import UserError
from topd_ray.models.architecture import linear_shapes
from topd_ray.models.facts import HEAD, Shapes


def check_adapters(folder: Path, lora: LoraConfig) -> None:
    """Raise UserError where a student cannot have the adapters that a config asks for.

    A target matches no linear layer, or the output head, or a layer that is smaller
    than the adapter.
    """
    layers = linear_shapes(folder)
    head = HEAD.removesuffix(".weight")
    for target in lora.targets:
        matched = _matched(layers, target)
        if not matched:
            raise UserError(
                f"learner.lora.targets: {target} names no linear layer of {folder};"
                f" its layers are {', '.join(_last_names(layers, without=head))}"
            )
        if head in matched:
            raise UserError(
                f"learner.lora.targets: {target} names the output head of {folder}."
                " The loss multiplies hidden states by the head's weight, and a tied"
                " head is the embedding too, so it stays as it is; drop this target"
            )
        for name in matched:
            if lora.rank > min(layers[name]):
                outputs, inputs = layers[name]
                raise UserError(
                    f"learner.lora.rank={lora.rank} is more than {name} of {folder},"
                    f" {outputs} x {inputs}, can have; set it to at most"
                    f" {min(outputs, inputs)}, or drop this target"
                )


def num_adapter_parameters(folder: Path, lora: LoraConfig) -> int:
    """Return the number of parameters of all adapters of a student."""
    layers = linear_shapes(folder)
    adapted = {name for target in lora.targets for name in _matched(layers, target)}
    return sum(lora.rank * sum(layers[name]) for name in adapted)


def _matched(layers: Shapes, target: str) -> list[str]:
    """Return the layers that PEFT takes for a target: by whole parts of their names."""
    return [name for name in layers if name == target or name.endswith(f".{target}")]


def _last_names(layers: Shapes, *, without: str) -> list[str]:
    names = dict.fromkeys(name.rpartition(".")[2] for name in layers)
    return [name for name in names if name != without]


__all__ = ["check_adapters", "num_adapter_parameters"]
