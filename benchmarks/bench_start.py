"""From the command to the first rollout, and whether the actors start side by side.

.venv/bin/python benchmarks/bench_start.py
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from measure import Claim, in_turn, save

from topd_ray.actors.calls import Calls
from topd_ray.actors.cluster import connected
from topd_ray.actors.fleet import open_fleet
from topd_ray.actors.learner import LearnerWorker
from topd_ray.actors.prober import ProbeWorker
from topd_ray.actors.replacement import Replacement
from topd_ray.actors.rollout import RolloutWorker
from topd_ray.actors.teacher import TeacherWorker
from topd_ray.config import Config, load_config
from topd_ray.records.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "local-toy.yaml"
TRAIN_DEADLINE_S = 280.0
PAIRS = 5
HEAVY = ("torch", "transformers", "vllm", "deepspeed")
OWN = {
    "rollout": {"torch", "transformers", "vllm"},
    "teacher": {"torch", "transformers", "vllm"},
    "learner": {"torch", "transformers", "deepspeed"},
    "prober": {"torch", "transformers"},
}
"""What an actor of a kind may load; anything else is seconds and memory for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """How one actor came to be ready, started alone."""

    actor: str
    seconds: float
    """From the request to the answer; Ray has the process waiting."""
    cpu_s: float
    """Of the process, until then."""
    loaded: str
    """Heavy modules in it."""


def main() -> None:
    """The command, then all actors together and one by one, in turn."""
    with tempfile.TemporaryDirectory() as made:
        command = train(Path(made))
        config = load_config(CONFIG, [f"run.root={made}", "run.name=start"])
        with connected(config):
            folder = RunFolder.create(config)
            alone: list[list[Readiness]] = []

            def serially() -> float:
                alone.append(one_by_one(config))
                return sum(one.seconds for one in alone[-1])

            pairs = in_turn(
                lambda: together(config, folder),
                serially,
                pairs=PAIRS,
                warm_up=0,  # the command has warmed what there is to warm
            )
    speedup, last = pairs.speedup, alone[-1]
    unneeded = {one.actor: set(one.loaded.split()) - OWN[one.actor] for one in last}
    save(
        Claim(
            name="start",
            claim="`topd train` to the first rollout",
            against="starts one by one",
            goal="all engines in parallel; each module imported once",
            figure=(
                f"{command['first rollout']:.1f} s, of which actors"
                f" {command['actors']:.1f} s; together {speedup} x as fast as one"
                " by one"
            ),
            met=min(speedup.values) > 1 and not any(unneeded.values()),
            setting=(
                "`topd train configs/local-toy.yaml run.steps=1` without evaluation,"
                " packages in the page cache; then, under one Ray, all actors at once"
                " against each after the one before. The first rollout is the end of"
                " the first chunk of 16. Each of the actors imports what it needs in a"
                " separate process, once; the table says what."
            ),
            details=[
                *(
                    {"what": what, "s": s, "CPU s": "", "loaded": ""}
                    for what, s in command.items()
                ),
                *(
                    {"what": f"{one.actor}, alone", "s": one.seconds}
                    | {"CPU s": one.cpu_s, "loaded": one.loaded}
                    for one in last
                ),
            ],
            words=words(unneeded),
        )
    )


def words(unneeded: dict[str, set[str]]) -> str:
    """Who loads what it has no use for."""
    found = [
        f"{actor} loads {', '.join(sorted(mods))}"
        for actor, mods in unneeded.items()
        if mods
    ]
    return f"Not needed: {'; '.join(found)}." if found else ""


def train(root: Path) -> dict[str, float]:
    """One step by the command; seconds from its first moment."""
    command = [Path(sys.executable).parent / "topd", "train", CONFIG, "run.steps=1"]
    command += [
        f"run.root={root}",
        "run.name=command",
        "run.trace=true",
        "evaluation.path=null",
    ]
    began_s = time.time()
    subprocess.run(
        [str(part) for part in command],
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=TRAIN_DEADLINE_S,
    )
    folder = root / "command"
    events = json.loads((folder / "trace.json").read_text(encoding="utf-8"))
    rolls = [
        one for one in events if one["ph"] == "X" and one["name"].startswith("roll_out")
    ]
    first = min(rolls, key=lambda one: one["ts"])
    begun_s = first["ts"] / 1e6 - began_s
    actors_s = json.loads((folder / "summary.json").read_text(encoding="utf-8"))[
        "stage_s"
    ]["start"]
    return {
        "imports, data, Ray": begun_s - actors_s,
        "actors": actors_s,
        "first chunk of rollouts": first["dur"] / 1e6,
        "first rollout": begun_s + first["dur"] / 1e6,
    }


def together(config: Config, folder: RunFolder) -> float:
    """Return the seconds until `open_fleet` has all actors ready."""

    async def start() -> float:
        began_s = time.perf_counter()
        async with open_fleet(
            config,
            folder,
            Calls.within(config.cluster),
            Replacement.never(),
            total_steps=1,
        ):
            return time.perf_counter() - began_s

    return asyncio.run(start())


def one_by_one(config: Config) -> list[Readiness]:
    """Each actor of the same run, after the one before is ready."""
    found, actors = [], []
    for kind, worker, place in (
        ("rollout", RolloutWorker, config.rollout.engine),
        ("teacher", TeacherWorker, config.teacher.engine),
        ("prober", ProbeWorker, config.probe),
        ("learner", LearnerWorker, config.learner),
    ):
        began = time.perf_counter()
        arguments = {"rank": 0, "total_steps": 1, "folder": None}
        remote = ray.remote(num_cpus=place.cpus)(worker)
        actor = remote.remote(config, **(arguments if kind == "learner" else {}))
        if kind == "learner":
            meeting = ray.get(actor.rendezvous.remote())
            ray.get(actor.start.remote(*meeting))
        else:
            ray.get(actor.ready.remote())
        seconds = time.perf_counter() - began
        loaded, cpu_s = ray.get(actor.__ray_call__.remote(_look_around, HEAVY))
        found.append(
            Readiness(actor=kind, seconds=seconds, cpu_s=cpu_s, loaded=" ".join(loaded))
        )
        actors.append(actor)
    for actor in actors:
        ray.kill(actor)
    return found


def _look_around(_: Any, heavy: tuple[str, ...]) -> tuple[list[str], float]:
    """Which heavy modules this actor has imported, and its CPU seconds so far."""
    import sys
    import time

    return [name for name in heavy if name in sys.modules], time.process_time()


if __name__ == "__main__":
    main()
