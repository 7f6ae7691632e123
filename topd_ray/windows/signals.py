"""The teacher's view of several rollouts as one. Axes as in messages.py."""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from topd_ray.messages import TeacherSignal


def join_signals(signals: Sequence[TeacherSignal]) -> TeacherSignal:
    """Positions of all signals, in order; raises ValueError where they are of several
    kinds.
    """
    kinds = {type(one) for one in signals}
    if len(kinds) != 1:
        names = sorted(kind.__name__ for kind in kinds)
        raise ValueError(
            f"signals of {len(kinds)} kinds in one micro-batch: {', '.join(names)}"
        )
    (kind,) = kinds
    return kind(
        **{
            field.name: np.concatenate([getattr(one, field.name) for one in signals])
            for field in fields(kind)
        }
    )


def no_signal(like: TeacherSignal) -> TeacherSignal:
    """The same kind and width, for no position."""
    kind = type(like)
    return kind(**{field.name: getattr(like, field.name)[:0] for field in fields(kind)})
