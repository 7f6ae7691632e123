"""The order in which roles start that cannot all have their GPUs at once."""

import asyncio
from pathlib import Path

from topd_ray.actors.calls import Calls
from topd_ray.actors.fleet import WorkerClasses, open_fleet
from topd_ray.actors.replacement import Replacement
from topd_ray.actors.roles import ROLES, RoleName
from topd_ray.config import Config, load_config
from topd_ray.records.run_folder import RunFolder

LOCAL = Path(__file__).parents[3] / "configs" / "local-toy.yaml"
INLINE = (
    "cluster.placement=inline",
    "rollout.engine.backend=hf",
    "teacher.engine.backend=hf",
    "rollout.num_engines=1",
    "learner.num_ranks=1",
)


def story_of(takes_turns: frozenset[RoleName]) -> list[str]:
    """What the workers of a fleet were asked, from its start to its end."""
    story = list[str]()

    class Teller:
        role = ""

        def __init__(self, _: Config, **named: object) -> None:
            self._tell("sleeps" if named.get("sleeps") else "is made")

        def _tell(self, what: str) -> None:
            story.append(f"{self.role} {what}")

        def ready(self) -> None:
            self._tell("has its model")

        def clock(self) -> float:
            return 0.0

        def rendezvous(self) -> tuple[str, int]:
            return "", 0

        def start(self, address: str, port: int) -> None:
            del address, port
            self._tell("has its model")

        def sleep(self) -> None:
            self._tell("falls asleep")

        def close(self) -> None:
            """Nothing is held."""

    kinds = ("rollout", "teacher", "prober", "learner")
    workers = {kind: type(kind, (Teller,), {"role": kind}) for kind in kinds}

    async def go() -> None:
        async with open_fleet(
            load_config(LOCAL, INLINE),
            RunFolder(Path("nowhere")),
            Calls(start_deadline_s=5.0, call_deadline_s=5.0),
            Replacement.never(),
            total_steps=1,
            workers=WorkerClasses(**workers),
            takes_turns=takes_turns,
        ) as fleet:
            assert fleet.takes_turns == takes_turns
            assert (fleet.direct is None) or not takes_turns

    asyncio.run(go())
    return story


def test_each_role_sleeps_before_the_next_one_is_made_and_the_learner_comes_last() -> (
    None
):
    assert story_of(frozenset(ROLES)) == [
        "learner is made",  # it holds nothing before its start
        "rollout sleeps",  # made for that
        "rollout has its model",
        "rollout falls asleep",
        "teacher sleeps",
        "prober sleeps",
        "teacher has its model",
        "prober has its model",
        "teacher falls asleep",
        "prober falls asleep",
        "learner has its model",
    ]


def test_without_turns_nobody_sleeps() -> None:
    story = story_of(frozenset())
    assert not any("sleep" in line for line in story)
    assert story.count("teacher has its model") == 1
