"""The rollout worker, called as the plain class it is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.make import prompt
from topd_ray.actors.rollout import RolloutWorker
from topd_ray.config import Config, parse_config
from topd_ray.errors import TopdError
from topd_ray.messages import rollout_requests
from topd_ray.records.receipts import RolloutReceipt


def config(student: Path, **sections: Any) -> Config:
    values = {
        "run": {"method": "kd"},
        "prompts": {"path": "p"},
        "rollout": {"max_response_tokens": 20, "engine": {"backend": "fake"}},
        "teacher": {"model": "t"},
        "learner": {"model": str(student)},
    }
    return parse_config(values | sections, source="test")


def test_given_responses_without_an_evaluation_open_no_engine(
    student_folder: Path,
) -> None:
    worker = RolloutWorker(config(student_folder))
    responses = [np.array([8, 2], np.int32), np.array([8, 9, 2], np.int32)]
    prompts = [prompt(i, response_ids_N=ids) for i, ids in enumerate(responses)]
    chunk, receipt = worker.roll_out(rollout_requests(prompts, 1), policy_version=5)
    assert isinstance(chunk, list)
    assert [rollout.response_ids_N.tolist() for rollout in chunk] == [[8, 2], [8, 9, 2]]
    assert isinstance(receipt, RolloutReceipt)
    assert receipt.num_tokens == 5
    with pytest.raises(TopdError, match="without an engine"):
        worker.evaluate([prompt(9)])
    worker.close()


@pytest.mark.parametrize(
    ("sections", "decodes"),
    [
        ({}, False),
        ({"evaluation": {"path": "e"}}, True),
        ({"run": {"method": "topd"}}, True),
        ({"run": {"method": "trd"}}, True),
    ],
)
def test_engines_are_needed_for_samples_and_for_evaluations(
    sections: dict[str, Any], decodes: bool
) -> None:
    assert config(Path("s"), **sections).decodes_rollouts == decodes
