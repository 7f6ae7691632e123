"""The listing tells the story: each stage opens with its arrow, and the arrows
chain.
"""

import importlib
import re

import pytest

from topd_ray import messages

STAGES = [
    "prompts",
    "rollout",
    "rewrite",
    "teacher",
    "candidates",
    "probe",
    "windows",
    "learner",
]


def arrow(stage: str) -> tuple[str, str]:
    text = importlib.import_module(f"topd_ray.{stage}").__doc__ or ""
    found = re.match(r"(\w+) -> (\w+)\.", text)
    assert found, (
        f"topd_ray/{stage}/__init__.py opens with {text.splitlines()[0]!r}, no arrow"
    )
    return found[1], found[2]


def test_the_arrows_chain_from_the_dataset_to_the_report() -> None:
    arrows = [arrow(stage) for stage in STAGES]
    ends = [end for _, end in arrows]
    assert [start for start, _ in arrows] == ["dataset", *ends[:-1]]
    assert ends[-1] == "StepReport"


@pytest.mark.parametrize("stage", STAGES)
def test_an_arrow_ends_in_a_message(stage: str) -> None:
    _, end = arrow(stage)
    assert hasattr(messages, end)
    assert end in (messages.__doc__ or "")
