"""A small world for distillation: arithmetic modulo 10 in words, a teacher, a careless student.

Both phenomena of the TOPD paper exist in it. *Surface forms* (so / hence, gives / equals) differ
strongly between teacher and student and change nothing; *reasoning forks* (precedence, brackets)
change all that follows. The finished world lies in `SHIPPED_WORLD`; `build_world` makes another.
"""

from topd_ray.toy.build import build_world
from topd_ray.toy.checksums import SHIPPED_WORLD, verify_world
from topd_ray.toy.recipe import ModelRecipe, Recipe

__all__ = ["SHIPPED_WORLD", "ModelRecipe", "Recipe", "build_world", "verify_world"]
