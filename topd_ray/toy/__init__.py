"""A small world for distillation: problems, a teacher and careless students.

The problems are arithmetic modulo 10, in words. Both phenomena of the TOPD paper exist.
*Surface forms* (so / hence, gives / equals) differ strongly between teacher and student
and change nothing; *reasoning forks* change all that follows. Students are unsure at
some forks (brackets), mostly wrong at others (precedence), and sure of themselves at
one kind (a *misconception*).
Under the forms of forms.yaml the teacher corrects an attempt, and a student solves with
care what a reference solution shows. Problems fall into three splits: train, dev for
every choice, heldout for the report alone.

The finished world is in `SHIPPED_WORLD`; `build_world` makes another, of `WORLDS` or of
a recipe.
"""

from topd_ray.toy.build import build_world, extend_world
from topd_ray.toy.checksums import SHIPPED_WORLD, verify_world
from topd_ray.toy.recipe import ModelRecipe, WorldRecipe
from topd_ray.toy.worlds import WORLDS, WorldName

__all__ = [
    "SHIPPED_WORLD",
    "WORLDS",
    "ModelRecipe",
    "WorldName",
    "WorldRecipe",
    "build_world",
    "extend_world",
    "verify_world",
]
