"""Whether the attention heads of a student can be dealt to ranks."""

from pathlib import Path

from topd_ray.errors import UserError
from topd_ray.models.architecture import config_of_text_model
from topd_ray.models.files import whole_number


def check_heads(folder: Path, num_ranks: int) -> None:
    """Raise UserError where ranks that share sequences would get no equal heads.

    Each rank attends with an equal share of the query heads and with the key heads that
    belong to them: whole ones, or one that several ranks have a copy of.
    """
    config = config_of_text_model(folder)
    num_queries = whole_number(folder, config, "num_attention_heads")
    num_keys = config.get("num_key_value_heads") or num_queries
    fits = num_keys % num_ranks == 0 or num_ranks % num_keys == 0
    if num_queries % num_ranks or not fits:
        raise UserError(
            f"learner.sequence_parallel={num_ranks}: the {num_queries} attention heads"
            f" of {folder}, and their {num_keys} heads of keys, cannot be dealt to so"
            f" many ranks; set it to one of {_possible(num_queries, num_keys)}"
        )


def _possible(num_queries: int, num_keys: int) -> str:
    return ", ".join(
        str(ranks)
        for ranks in range(1, num_queries + 1)
        if num_queries % ranks == 0 and (num_keys % ranks == 0 or ranks % num_keys == 0)
    )


__all__ = ["check_heads"]
