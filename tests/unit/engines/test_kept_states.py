"""The worker keeps the states of scoring requests, in whatever pieces vLLM computes
them.
"""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from topd_ray.engines import vllm_worker
from topd_ray.engines.vllm_worker import DECODING, SCORING, KeptStates, StatesPiece
from topd_ray.errors import TopdError

MINE, OTHER, PROBE = f"{SCORING}1-abc", f"{SCORING}2-def", "3-ghi"
WIDTH = 4


def states(request_id: str, start: int, end: int) -> torch.Tensor:
    """What the model would give at these positions of this request: (end - start,
    WIDTH).
    """
    first = 1000.0 * hash_of(request_id)
    return first + torch.arange(start, end)[:, None].expand(-1, WIDTH).float()


def hash_of(request_id: str) -> int:
    return [MINE, OTHER, PROBE].index(request_id)


def step(
    kept: KeptStates, *parts: tuple[str, int, int], new: tuple[str, ...] = ()
) -> None:
    """One step of the engine, of some positions of some requests, with two rows of
    padding.
    """
    start_of = {request_id: start for request_id, start, _ in parts}
    old = [request_id for request_id in start_of if request_id not in new]
    scheduled = SimpleNamespace(
        num_scheduled_tokens={
            request_id: end - start for request_id, start, end in parts
        },
        scheduled_new_reqs=[
            SimpleNamespace(req_id=one, num_computed_tokens=start_of[one])
            for one in new
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=old, num_computed_tokens=[start_of[one] for one in old]
        ),
    )
    rows = torch.cat(
        [*(states(*part) for part in parts), torch.full((2, WIDTH), torch.nan)]
    )
    runner = SimpleNamespace(execute_model=lambda *_: None)
    runner.execute_model_state = SimpleNamespace(hidden_states=rows)
    runner.input_batch = SimpleNamespace(
        req_ids=[request_id for request_id, _, _ in parts]
    )
    assert kept.behind(runner)(scheduled) is None
    rows.fill_(torch.inf)  # as a graph's buffer is overwritten by the next step


def test_pieces_among_other_requests_come_back_whole():
    kept = KeptStates()
    step(kept, (PROBE, 9, 10), (MINE, 0, 3), (OTHER, 0, 5), new=(MINE, OTHER))
    step(kept, (MINE, 3, 8), (PROBE, 10, 11))
    np.testing.assert_array_equal(kept.take(OTHER, 0, 5), states(OTHER, 0, 5))
    np.testing.assert_array_equal(kept.take(MINE, 0, 8), states(MINE, 0, 8))


def test_a_request_computed_again_counts_as_it_was_last():
    kept = KeptStates()
    step(kept, (MINE, 0, 6), new=(MINE,))
    step(kept, (MINE, 0, 2))  # after a preemption
    step(kept, (MINE, 2, 8))
    step(kept, (MINE, 8, 9))  # a token beyond the prefix
    np.testing.assert_array_equal(kept.take(MINE, 0, 8), states(MINE, 0, 8))


@pytest.mark.parametrize("parts", [[], [(0, 3)], [(0, 3), (4, 8)]])
def test_states_that_were_not_seen_are_an_error(parts):
    kept = KeptStates()
    for start, end in parts:
        step(kept, (MINE, start, end))
    with pytest.raises(TopdError, match="of 8 hidden states"):
        kept.take(MINE, 0, 8)


def test_what_was_dropped_or_taken_is_gone():
    kept = KeptStates()
    for request_id in (MINE, OTHER):
        step(kept, (request_id, 0, 4))
    kept.drop([OTHER, "unknown"])
    kept.take(MINE, 0, 4)
    for request_id in (MINE, OTHER):
        with pytest.raises(TopdError, match="computed 0 of 4"):
            kept.take(request_id, 0, 4)


def test_a_runner_that_carries_its_batch_with_the_step_is_read_there():
    """vLLM's second model runner does; on a GPU it is the default."""
    kept = KeptStates()
    batch = SimpleNamespace(req_ids=[MINE])
    state = SimpleNamespace(hidden_states=states(MINE, 0, 3), input_batch=batch)
    runner = SimpleNamespace(execute_model=lambda *_: None, execute_model_state=state)
    scheduled = SimpleNamespace(
        num_scheduled_tokens={MINE: 3},
        scheduled_new_reqs=[SimpleNamespace(req_id=MINE, num_computed_tokens=0)],
        scheduled_cached_reqs=SimpleNamespace(req_ids=[], num_computed_tokens=[]),
    )
    kept.behind(runner)(scheduled)
    np.testing.assert_array_equal(kept.take(MINE, 0, 3), states(MINE, 0, 3))


def test_rows_under_way_from_a_gpu_are_waited_for_piece_by_piece(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rows arrive when their own event is waited for, and no stream is."""

    class Event:
        def __init__(self, rows_LD: torch.Tensor, wanted_LD: torch.Tensor) -> None:
            self.rows_LD, self.wanted_LD = rows_LD, wanted_LD

        def synchronize(self) -> None:
            self.rows_LD.copy_(self.wanted_LD)

    def copied(start: int, rows_LD: torch.Tensor) -> Any:
        on_its_way = torch.full_like(rows_LD, torch.nan)
        return StatesPiece(
            start, on_its_way, cast("Any", Event(on_its_way, rows_LD.clone()))
        )

    monkeypatch.setattr(vllm_worker, "_copied", copied)
    kept = KeptStates()
    step(kept, (MINE, 0, 3), (OTHER, 0, 5), new=(MINE, OTHER))
    step(kept, (MINE, 3, 8))
    np.testing.assert_array_equal(kept.take(MINE, 0, 8), states(MINE, 0, 8))
    np.testing.assert_array_equal(kept.take(OTHER, 1, 5), states(OTHER, 1, 5))


def test_a_dummy_batch_is_not_looked_at() -> None:
    """vLLM's second model runner runs them, with requests of their own."""
    runner = SimpleNamespace(execute_model=lambda *_, **__: "ran")
    assert KeptStates().behind(runner)(None, dummy_run=True) == "ran"


def test_bfloat16_comes_as_bits():
    kept = KeptStates()
    scheduled = SimpleNamespace(
        num_scheduled_tokens={MINE: 3},
        scheduled_new_reqs=[SimpleNamespace(req_id=MINE, num_computed_tokens=0)],
        scheduled_cached_reqs=SimpleNamespace(req_ids=[], num_computed_tokens=[]),
    )
    kept.keep(scheduled, [MINE], states(MINE, 0, 3).bfloat16())
    taken = kept.take(MINE, 0, 3)
    assert taken.dtype == np.uint16
    whole = torch.from_numpy(taken.view(np.int16)).view(torch.bfloat16).float()
    np.testing.assert_array_equal(whole, states(MINE, 0, 3))


def test_of_a_generation_only_what_predicts_its_tokens_need_be_computed():
    """The prefix of 6 came from the cache but for its last two tokens."""
    kept = KeptStates()
    name = DECODING + "1-abc"
    rows = torch.arange(4 * WIDTH).reshape(4, WIDTH).float()
    runner = SimpleNamespace(execute_model=lambda *_: None)
    runner.input_batch = SimpleNamespace(req_ids=[name])
    for start, end in ((4, 6), (6, 7), (7, 8)):
        runner.execute_model_state = SimpleNamespace(
            hidden_states=rows[start - 4 : end - 4].clone()
        )
        kept.behind(runner)(
            SimpleNamespace(
                num_scheduled_tokens={name: end - start},
                scheduled_new_reqs=[],
                scheduled_cached_reqs=SimpleNamespace(
                    req_ids=[name], num_computed_tokens=[start]
                ),
            )
        )
    np.testing.assert_array_equal(kept.take(name, 5, 8), rows[1:])
