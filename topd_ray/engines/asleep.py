"""Whether an engine is awake: a call that finds it asleep is an error by name.

An asleep engine has given the memory of its GPU to another role. A call would crash, or
read memory that is another's by now.
"""

from topd_ray.engines.protocols import WakePart
from topd_ray.errors import TopdError


class Wakefulness:
    """How much of an engine is awake: nothing, its weights, or all of it."""

    def __init__(self) -> None:
        self.part: WakePart | None = "all"
        """None while the engine is asleep."""

    def require(self, what: str) -> None:
        """Raise TopdError where a call `what` finds less than all of it awake."""
        if self.part != "all":
            raise TopdError(f"{what}: the engine is asleep; it must be woken first")

    def require_weights(self, what: str) -> None:
        """Raise TopdError where a call `what` finds the weights asleep."""
        if self.part is None:
            raise TopdError(f"{what}: the engine's weights are asleep; wake them first")

    def falls_asleep(self) -> bool:
        """Note that the engine sleeps; return whether something of it was awake."""
        was_awake = self.part is not None
        self.part = None
        return was_awake

    def wakes(self, part: WakePart) -> bool:
        """Note that a part wakes; return whether it was asleep until now."""
        if self.part in ("all", part):
            return False
        self.part = part
        return True


__all__ = ["Wakefulness"]
