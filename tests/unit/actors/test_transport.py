"""The transport of weights by a config's own placement."""

import pytest

from tests.unit.driver.fleet import config
from topd_ray.actors.transport import transport_of
from topd_ray.config import Config, load_config
from topd_ray.errors import UserError

COLOCATED = "configs/qwen3-30b-a3b-to-4b-4xh100.yaml"


def on_gpus(rollout: float, learner: float, **weights: object) -> Config:
    return config(
        {
            "rollout": {
                "samples_per_prompt": 2,
                "chunk_size": 2,
                "engine": {"gpus": rollout},
            },
            "learner": {"model": "s", "gpus": learner},
            "weights": weights,
        }
    )


def test_a_run_on_cpus_takes_the_object_store() -> None:
    assert transport_of(config()) == "store"


def test_engines_and_learner_on_gpus_of_their_own_are_connected_by_nccl() -> None:
    assert transport_of(on_gpus(1, 1)) == "nccl"


def test_where_each_engine_shares_its_gpu_with_a_rank_weights_go_by_ipc() -> None:
    shipped = load_config(COLOCATED)
    assert transport_of(shipped) == "ipc"


def test_engines_of_another_kind_take_the_object_store() -> None:
    chosen = on_gpus(1, 1).model_dump()
    chosen["rollout"]["engine"]["backend"] = "hf"
    assert transport_of(Config.model_validate(chosen)) == "store"


def test_a_transport_that_the_placement_cannot_do_is_refused() -> None:
    with pytest.raises(UserError, match=r"^weights\.transport=ipc: GPU .* holds no"):
        transport_of(on_gpus(1, 1, transport="ipc"))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"rollout": {"engine": {"backend": "hf"}}}, "only vllm takes weights"),
        ({"rollout": {"max_staleness": 1}}, "wait for each other"),
    ],
)
def test_a_transport_that_no_placement_could_do_is_refused_by_the_config(
    sections: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        config({**sections, "weights": {"transport": "nccl"}})
