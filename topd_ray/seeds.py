"""Derived randomness: a seed is a function of what it is for, so any work can be done
again.
"""

import hashlib


def derive_seed(run_seed: int, *parts: str | int) -> int:
    """Seed in [0, 2**31) for one purpose, e.g. `derive_seed(0, rollout_id, "rollout")`.

    The same arguments give the same seed on every machine and in every process; parts
    are joined with a separator that no part may contain, so ("a", "b") and ("ab",)
    differ.
    """
    key = "\x1f".join([str(run_seed), *map(str, parts)])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") >> 1
