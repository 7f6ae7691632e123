"""The loss of taken-over rollouts, against the plain formula in float64.

Axes: P prompt tokens, N trained response tokens, D width, V vocabulary.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests import make
from tests.tiny import VOCAB
from topd_ray.config import ObjectiveConfig
from topd_ray.learner.divergence import TokenLoss
from topd_ray.learner.fused import Losses
from topd_ray.learner.inputs import forward_inputs
from topd_ray.learner.model import DistillationModel, load_student
from topd_ray.messages import HiddenSignal, ScoredRollout, Takeover
from topd_ray.takeover import taken_over
from topd_ray.windows import pack

PROMPT = 3
RESPONSE = 7


@pytest.fixture(scope="module")
def teacher(teacher_folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float64)


def states(teacher: torch.nn.Module, prompt_P, response_N) -> np.ndarray:
    """The states that predict the response, (N, D)."""
    ids_L = np.concatenate([prompt_P, response_N])
    with torch.no_grad():
        output = teacher.base_model(torch.from_numpy(ids_L).long()[None])
    hidden_LD = output.last_hidden_state[0]
    return hidden_LD[len(prompt_P) - 1 : -1].float().numpy()


def spliced(
    teacher: torch.nn.Module, name: str, fork: int | None, length: int
) -> ScoredRollout:
    """A rollout whose teacher wrote `length` tokens from the fork on."""
    rng = np.random.default_rng(len(name) + 7 * (fork or 0))
    prompt_P = rng.integers(6, 40, PROMPT).astype(np.int32)
    own_N = rng.integers(6, 40, RESPONSE).astype(np.int32)
    plain = make.rollout(
        name, length=RESPONSE, prompt_ids_P=prompt_P, response_ids_N=own_N
    )
    scored = ScoredRollout(
        rollout=plain,
        signal=HiddenSignal(hidden_ND=states(teacher, prompt_P, own_N)),
        token_loss_N=np.ones(RESPONSE, np.float32),
        logq_N=-np.ones(RESPONSE, np.float32),
        entropy_N=np.zeros(0, np.float32),
    )
    if fork is None:
        return scored
    its_L = rng.integers(6, 40, length).astype(np.int32)
    whole = states(teacher, prompt_P, np.concatenate([own_N[:fork], its_L]))
    takeover = Takeover(
        rollout_id=name,
        policy_version=0,
        position=fork,
        response_ids_L=its_L,
        finish_reason="stop",
        signal=HiddenSignal(hidden_ND=whole[fork:]),
        logq_L=-np.ones(length, np.float32),
    )
    return taken_over(scored, takeover)


FORKS = {
    "none": (None, 0),
    "at 0": (0, 5),
    "in the middle": (3, 9),
    "EOS at once": (4, 1),
    "at the last token": (RESPONSE - 1, 2),
}


def kl(logp_NV: Tensor, logq_NV: Tensor) -> Tensor:
    return (logp_NV.exp() * (logp_NV - logq_NV)).sum(1)


@pytest.mark.parametrize("mix", [False, True])
def test_the_step_has_the_loss_of_the_formula(
    student_folder: Path, teacher: torch.nn.Module, mix: bool
):
    rows = [
        spliced(teacher, f"r{index}", *place)
        for index, place in enumerate(FORKS.values())
    ]
    student = AutoModelForCausalLM.from_pretrained(student_folder, dtype=torch.float64)
    head_VE = teacher.get_output_embeddings().weight.detach()[: len(VOCAB)]
    want_reverse = want_forward = 0.0
    for row, (fork, _) in zip(rows, FORKS.values(), strict=True):
        prompt_P, response_N = row.rollout.prompt_ids_P, row.rollout.response_ids_N
        ids_L = torch.from_numpy(np.concatenate([prompt_P, response_N])).long()
        with torch.no_grad():
            logits_LV = student(ids_L[None]).logits[0][:, : len(VOCAB)]
        logp_NV = logits_LV[PROMPT - 1 : -1].log_softmax(1)
        assert isinstance(row.signal, HiddenSignal)
        states_ND = torch.from_numpy(row.signal.hidden_ND).double()
        logq_NV = (states_ND @ head_VE.T).log_softmax(1)
        reverse_N, forward_N = kl(logp_NV, logq_NV), kl(logq_NV, logp_NV)
        t = len(response_N) if fork is None else fork
        for n in range(len(response_N)):
            own, at = n < t, n == t and t > 0
            behind = not own and not at
            want_reverse += float((own + at + mix * behind) * reverse_N[n])
            want_forward += float((at + behind + mix * own) * forward_N[n])
    (batch,) = pack(
        rows,
        None,
        threshold=0.0,
        objective=ObjectiveConfig(trajectory="takeover", mix=mix),
        token_budget=1000,
        run_seed=0,
    )
    model = DistillationModel(
        load_student(student_folder, dtype=torch.float32, gradient_checkpointing=False),
        num_ids=len(VOCAB),
        signal="hidden",
        teacher_head_VE=head_VE.float(),
        token_loss=TokenLoss(),
        lambda_traj=0.0,
    )
    losses = Losses(*model(*forward_inputs(batch, num_ids=len(VOCAB))))
    assert losses.total.item() == pytest.approx(want_reverse + want_forward, rel=1e-4)
    assert losses.reverse_kl.item() == pytest.approx(want_reverse, rel=1e-4)
    assert losses.forward_kl.item() == pytest.approx(want_forward, rel=1e-4)
