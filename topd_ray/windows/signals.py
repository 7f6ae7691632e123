"""Join and cut the teacher's signals. Axes as in messages.py."""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from topd_ray.messages import TeacherSignal


def join_signals(signals: Sequence[TeacherSignal]) -> TeacherSignal:
    """Return one signal with the positions of all, in order.

    Args:
        signals: At least one signal; all of one type, and of one width.

    Returns:
        A signal of that type.

    Raises:
        ValueError: The signals are of several types, or there are none.
    """
    # A micro-batch has one loss, and so one type of signal.
    kinds = {type(signal) for signal in signals}
    if len(kinds) != 1:
        names = sorted(kind.__name__ for kind in kinds)
        raise ValueError(
            f"signals of {len(kinds)} kinds in one micro-batch: {', '.join(names)}"
        )
    (kind,) = kinds
    joined = {
        field.name: np.concatenate([getattr(signal, field.name) for signal in signals])
        for field in fields(kind)
    }
    return kind(**joined)


def rows_of(signal: TeacherSignal, count: int) -> TeacherSignal:
    """Return the signal at the first positions.

    Args:
        signal: A teacher's signal of N positions.
        count: How many are kept; all where it is N or more.

    Returns:
        A signal of the same type; its arrays are views.
    """
    cut = {field.name: getattr(signal, field.name)[:count] for field in fields(signal)}
    return type(signal)(**cut)


def row_at(signal: TeacherSignal, position: int) -> TeacherSignal:
    """Return a copy of the signal at one position.

    Args:
        signal: A teacher's signal of N positions.
        position: Which, from 0 to N - 1.

    Returns:
        A signal of the same type whose arrays have an axis of length 1.
    """
    rows = slice(position, position + 1)
    cut = {field.name: getattr(signal, field.name)[rows] for field in fields(signal)}
    return type(signal)(**{name: array.copy() for name, array in cut.items()})
