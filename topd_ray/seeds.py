"""Seeds that are functions of their purpose, so that any call can be repeated."""

import hashlib


def derive_seed(run_seed: int, *parts: str | int) -> int:
    """Return the seed for one purpose, an integer in [0, 2**31).

    The same arguments give the same seed on every machine and in every process.

    Example: `derive_seed(0, rollout_id, position, "probe")`.

    Args:
        run_seed: The seed of the run, `run.seed`.
        parts: What the seed is for: ids first, then the purpose. No part may contain
            the character \\x1f, which separates them: ("a", "b") and ("ab",) differ.

    Returns:
        The first 31 bits of a SHA-256 hash of the arguments.
    """
    # A cryptographic hash, because hash() of a string differs between processes.
    key = "\x1f".join([str(run_seed), *map(str, parts)])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") >> 1
