"""What the actors of a run do in a step, each role alone in this process.

Prompts and responses are random and of the full length, so that every run does the same
work; answers are not looked at.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import ray  # noqa: F401  an actor holds its libraries, which count as memory

from topd_ray.config import Config, parse_config

NUM_ROLLOUTS = 8
PROMPT_TOKENS = 128
RESPONSE_TOKENS = 192
ROLES = ("rollout", "teacher", "probe", "learner")
RNG = np.random.default_rng(0)

Timed = Callable[[str], AbstractContextManager[Any]]


def untimed(_stage: str) -> AbstractContextManager[Any]:
    """Time nothing."""
    return nullcontext()


def case_config(models: Path, case: str, *, method: str = "topd") -> Config:
    """The config of a case; its model is both student and teacher."""
    name, _, dtype = case.partition(":")
    engine = {
        "dtype": dtype,
        "kv_cache_gib": 0.5,
        "max_num_seqs": 32,
        "enforce_eager": True,
    }
    values = {
        "run": {"method": method},
        "prompts": {
            "path": "none.jsonl",
            "max_tokens": PROMPT_TOKENS,
            "per_step": NUM_ROLLOUTS,
        },
        "rollout": {
            "max_response_tokens": RESPONSE_TOKENS,
            "samples_per_prompt": 1,
            "engine": engine,
        },
        "teacher": {"model": str(models / name), "engine": engine},
        "learner": {"model": str(models / name), "dtype": dtype},
    }
    return parse_config(values, source="benchmark")


def run_role(config: Config, role: str, timed: Timed = untimed) -> int:
    """Do the work of two steps, as an actor of the role does it.

    `timed(stage)` is entered around each call. Returns the tokens that a teacher's
    continuations of one step had, for other roles 0.
    """
    return {
        "rollout": run_rollout,
        "teacher": run_teacher,
        "probe": run_prober,
        "learner": run_learner,
    }[role](config, timed)


def run_rollout(config: Config, timed: Timed) -> int:
    """Decode the rollouts of a step."""
    from topd_ray.actors.rollout import RolloutWorker
    from topd_ray.messages import RolloutRequest

    worker = RolloutWorker(config)
    prompts = [rollout_prompt(i) for i in range(NUM_ROLLOUTS)]
    requests = [RolloutRequest(prompt=p, sample_index=0) for p in prompts]
    for _ in range(2):
        with timed("rollout"):
            list(worker.roll_out(requests, 0))
    return 0


def run_teacher(config: Config, timed: Timed) -> int:
    """Score the rollouts of a step and continue from their candidates."""
    from topd_ray.actors.teacher import TeacherWorker

    worker = TeacherWorker(config)
    for step in range(2):
        rollouts = [rollout(i, step) for i in range(NUM_ROLLOUTS)]
        with timed("score"):
            *_, candidates, _ = worker.score(rollouts)
        with timed("continue"):
            _, receipt = worker.continue_from(candidates)
    return receipt.num_tokens


def run_prober(config: Config, timed: Timed) -> int:
    """Solve the transport of a step."""
    from topd_ray.actors.prober import ProbeWorker
    from topd_ray.candidates import find_candidates

    worker = ProbeWorker(config)
    candidates = [
        find_candidates(scored(i, 0, 8), config.candidates, run_seed=0)
        for i in range(NUM_ROLLOUTS)
    ]
    windows = [
        ids(len(one.positions_W) * config.probe.window).reshape(-1, config.probe.window)
        for one in candidates
    ]
    for _ in range(2):
        with timed("probe"):
            worker.probe(candidates, windows)
    return 0


def run_learner(config: Config, timed: Timed) -> int:
    """Train on two steps and publish."""
    from topd_ray.actors.learner import LearnerWorker
    from topd_ray.models.facts import read_facts
    from topd_ray.models.roles import resolve_teacher

    worker = LearnerWorker(config, rank=0, total_steps=9, folder=None)
    worker.start(*worker.rendezvous())
    width = read_facts(resolve_teacher(config)).hidden_size
    for step in range(2):
        batch = [scored(i, step, width) for i in range(NUM_ROLLOUTS)]
        with timed("accumulate"):
            worker.accumulate(0.1, *batch)
        with timed("step"):
            worker.step(False)
        with timed("publish"):
            list(worker.publish())
    return 0


def rollout_prompt(index: int) -> Any:
    """A random prompt."""
    from topd_ray.messages import Prompt

    return Prompt(
        prompt_id=str(index),
        position=index,
        token_ids_P=ids(PROMPT_TOKENS),
        answer=None,
    )


def rollout(index: int, version: int) -> Any:
    """A random rollout of the full length."""
    from topd_ray.messages import Rollout

    top_ids_NM = np.argsort(RNG.random((RESPONSE_TOKENS, 1000)))[:, :16]
    prompt_ids_P = ids(PROMPT_TOKENS)
    return Rollout(
        rollout_id=f"{index:08d}.0",
        prompt_id=str(index),
        position=index,
        policy_version=version,
        prompt_ids_P=prompt_ids_P,
        teacher_prompt_ids_P=prompt_ids_P,
        response_ids_N=ids(RESPONSE_TOKENS),
        logp_O=np.full(RESPONSE_TOKENS, -5.0, np.float32),
        top_ids_OM=top_ids_NM.astype(np.int32),
        top_logp_OM=np.full(top_ids_NM.shape, -4.0, np.float32),
        finish_reason="length",
    )


def scored(index: int, version: int, width: int) -> Any:
    """A random scored rollout."""
    from topd_ray.messages import HiddenSignal, ScoredRollout

    states_ND = RNG.standard_normal((RESPONSE_TOKENS, width), np.float32)
    return ScoredRollout(
        rollout=rollout(index, version),
        signal=HiddenSignal(hidden_ND=states_ND),
        token_loss_N=RNG.random(RESPONSE_TOKENS, np.float32),
        logq_N=-RNG.random(RESPONSE_TOKENS, np.float32),
        entropy_N=np.zeros(0, np.float32),
    )


def ids(length: int) -> Any:
    """Random ids, all in every vocabulary."""
    return RNG.integers(1000, 40_000, length).astype(np.int32)
