"""The worlds by name: the shipped one, and two in which a method may fail."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from topd_ray.toy.drawing import ProblemShape
from topd_ray.toy.problems import Slips
from topd_ray.toy.recipe import WorldRecipe

WorldName = Literal["shipped", "no-recovery", "small"]

_SHIPPED = WorldRecipe()
_NO_SLIPS = Slips(brackets=0.0, precedence=0.0, misconception=0.0)

WORLDS: Mapping[WorldName, WorldRecipe] = {
    "shipped": _SHIPPED,
    # The teacher has met wrong forks in attempts alone, never in a solution that it had
    # to go on with: behind a student's error it is off its own road.
    "no-recovery": replace(
        _SHIPPED,
        teacher=replace(
            _SHIPPED.teacher,
            manner=replace(_SHIPPED.teacher.manner, slips=_NO_SLIPS),
        ),
    ),
    # The student's layers have three tenths of the shipped one's weights, and solutions
    # are longer: whole answers are hard to imitate.
    "small": replace(
        _SHIPPED,
        shape=ProblemShape(min_operands=5, max_operands=7),
        student=replace(
            _SHIPPED.student, layers=2, hidden=64, heads=2, feed_forward=128
        ),
    ),
}
"""The recipe of each world."""
