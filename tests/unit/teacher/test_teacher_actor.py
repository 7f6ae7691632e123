"""The teacher scores under its own prompt, and its head follows new weights."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.make import rollout
from topd_ray.config import CandidatesConfig, TeacherConfig
from topd_ray.engines.protocols import Generation, GenerationRequest, NamedArray
from topd_ray.errors import TopdError, WeightsError
from topd_ray.messages import (
    Floats,
    HiddenSignal,
    Ints,
    PartialRollout,
    Rollout,
    SampledSignal,
    TopkSignal,
)
from topd_ray.teacher import TeacherActor
from topd_ray.weights.buckets import in_buckets

VOCAB = 64


class Reader:
    """A fake engine: the state of a token is noise seeded by the tokens up to it."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.loaded: list[NamedArray] = []
        self.missing = 0
        self.num_read = 0

    def hidden_states(
        self, sequences: Sequence[Ints], starts: Sequence[int] | None = None
    ) -> list[Floats]:
        read = []
        for sequence, start in zip(
            sequences, starts or [0] * len(sequences), strict=True
        ):
            read.append(self.states(sequence)[start + self.missing :])
            self.num_read += len(sequence) - start
        return read

    def states(self, sequence: Ints) -> Floats:
        prefixes = (sequence[: end + 1].tolist() for end in range(len(sequence)))
        return np.stack(
            [
                np.random.default_rng(prefix).standard_normal(self.width)
                for prefix in prefixes
            ]
        ).astype(np.float32)

    def load_weights(self, weights: Iterable[NamedArray]) -> None:
        self.loaded = list(weights)

    def close(self) -> None:
        pass


def actor(
    folder: Path,
    reader: Reader,
    *,
    loss: str = "reverse_kl",
    dtype: str = "float32",
    **fields: Any,
) -> TeacherActor:
    config = TeacherConfig.model_validate(
        {"model": "t", "engine": {"backend": "fake", "dtype": dtype}} | fields
    )
    return TeacherActor(
        config, CandidatesConfig.model_validate({"loss": loss}), folder, lambda: reader
    )


@pytest.fixture
def reader() -> Reader:
    return Reader(64)


@pytest.fixture(scope="module", name="head_VD")
def _head(teacher_folder: Path) -> torch.Tensor:
    return load_file(teacher_folder / "model.safetensors")["lm_head.weight"].double()


def expected_logq(
    reader: Reader, head_VD: torch.Tensor, prompt: Ints, response: Ints
) -> Any:
    """Log-probabilities (N, V) in float64, with one forward a response position."""
    rows = []
    for index in range(len(response)):
        state = reader.states(np.concatenate([prompt, response[:index]]))[-1]
        rows.append((head_VD @ torch.from_numpy(state).double()).log_softmax(0))
    return torch.stack(rows).numpy()


OWN_PROMPT = np.array([50, 51, 52, 53, 54, 55], np.int32)


@pytest.mark.parametrize("prompt", [OWN_PROMPT, OWN_PROMPT[:1]])
def test_every_signal_is_the_teachers_view_under_its_own_prompt(
    teacher_folder, reader, head_VD, prompt
):
    sampled_rollout = rollout(length=7, teacher_prompt_ids_P=prompt)
    logq_NV = expected_logq(reader, head_VD, prompt, sampled_rollout.response_ids_N)

    hidden = (
        actor(teacher_folder, reader, signal="hidden")
        .score([sampled_rollout])[0]
        .signal
    )
    assert isinstance(hidden, HiddenSignal)
    from_hidden_NV = (
        torch.from_numpy(hidden.hidden_ND).double() @ head_VD.T
    ).log_softmax(1)
    np.testing.assert_allclose(from_hidden_NV, logq_NV, atol=1e-10)

    topk = (
        actor(teacher_folder, reader, signal="topk", top_k=5)
        .score([sampled_rollout])[0]
        .signal
    )
    assert isinstance(topk, TopkSignal)
    np.testing.assert_array_equal(topk.ids_NM, np.argsort(-logq_NV, axis=1)[:, :5])
    np.testing.assert_allclose(topk.logq_NM, -np.sort(-logq_NV)[:, :5], atol=1e-4)

    sampled = (
        actor(teacher_folder, reader, signal="sampled")
        .score([sampled_rollout])[0]
        .signal
    )
    assert isinstance(sampled, SampledSignal)
    np.testing.assert_allclose(
        sampled.logq_N, logq_NV[np.arange(7), sampled_rollout.response_ids_N], atol=1e-4
    )


def test_a_bfloat16_teacher_sends_the_bits_of_its_states(teacher_folder, reader):
    sampled_rollout = rollout()
    whole = actor(teacher_folder, reader).score([sampled_rollout])[0].signal
    half = (
        actor(teacher_folder, reader, dtype="bfloat16")
        .score([sampled_rollout])[0]
        .signal
    )
    assert isinstance(whole, HiddenSignal)
    assert isinstance(half, HiddenSignal)
    assert half.hidden_ND.dtype == np.uint16
    rounded = torch.tensor(whole.hidden_ND).bfloat16()
    assert torch.equal(torch.from_numpy(half.hidden_ND).view(torch.bfloat16), rounded)


def test_bits_of_an_engine_are_sent_as_they_are(teacher_folder):
    class Bits(Reader):
        def states(self, sequence: Ints) -> Any:
            rounded = torch.from_numpy(super().states(sequence)).bfloat16()
            return rounded.view(torch.uint16).numpy()

    class Rounded(Bits):
        def states(self, sequence: Ints) -> Any:
            bits = torch.from_numpy(super().states(sequence).view(np.int16))
            return bits.view(torch.bfloat16).float().numpy()

    given = rollout()
    (bits,), (rounded,) = (
        actor(teacher_folder, reader, dtype="bfloat16").score([given])
        for reader in (Bits(64), Rounded(64))
    )
    assert isinstance(bits.signal, HiddenSignal)
    assert isinstance(rounded.signal, HiddenSignal)
    np.testing.assert_array_equal(bits.signal.hidden_ND, rounded.signal.hidden_ND)
    np.testing.assert_array_equal(bits.token_loss_N, rounded.token_loss_N)


def test_the_candidate_loss_is_the_configured_one(teacher_folder, reader, head_VD):
    length = 6
    sampled_rollout = rollout(
        length=length,
        top_ids_OM=np.tile(np.arange(VOCAB, dtype=np.int32), (length, 1)),
        top_logp_OM=np.full((length, VOCAB), -np.log(VOCAB), np.float32),
        logp_O=np.full(length, -np.log(VOCAB), np.float32),
    )
    logq_NV = expected_logq(
        reader,
        head_VD,
        sampled_rollout.teacher_prompt_ids_P,
        sampled_rollout.response_ids_N,
    )
    logq_N = logq_NV[np.arange(length), sampled_rollout.response_ids_N]
    for loss, expected in {
        "reverse_kl": (-np.log(VOCAB) - logq_NV).mean(1),
        "log_ratio": -np.log(VOCAB) - logq_N,
        "teacher_nll": -logq_N,
    }.items():
        for signal in ("hidden", "topk", "sampled"):
            scored = actor(teacher_folder, reader, loss=loss, signal=signal).score(
                [sampled_rollout]
            )[0]
            assert scored.token_loss_N.dtype == np.float32
            np.testing.assert_allclose(scored.token_loss_N, expected, atol=1e-4)


@pytest.mark.parametrize("loss", ["reverse_kl", "log_ratio", "teacher_nll"])
def test_what_the_student_did_not_sample_is_measured_by_the_teacher_alone(
    teacher_folder, reader, loss
):
    sampled = rollout(length=6)
    given = rollout(
        length=6,
        logp_O=np.zeros(0, np.float32),
        top_ids_OM=np.zeros((0, 0), np.int32),
        top_logp_OM=np.zeros((0, 0), np.float32),
    )
    nll = (
        actor(teacher_folder, reader, loss="teacher_nll")
        .score([sampled])[0]
        .token_loss_N
    )
    scored = actor(teacher_folder, reader, loss=loss).score([given, sampled])
    np.testing.assert_array_equal(scored[0].token_loss_N, nll)
    assert (loss == "teacher_nll") == np.array_equal(scored[1].token_loss_N, nll)


def test_states_that_do_not_match_the_tokens_are_refused(teacher_folder, reader):
    reader.missing = 1
    with pytest.raises(
        TopdError, match="rollout r0: the teacher returned 6 hidden states for 7"
    ):
        actor(teacher_folder, reader).score([rollout()])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bits", [True, False])
def test_new_weights_reach_the_engine_and_the_head(
    teacher_folder, student_folder, tied, bits
):
    folder, reader = (
        (student_folder, Reader(32)) if tied else (teacher_folder, Reader(64))
    )
    teacher = actor(folder, reader, signal="topk", top_k=VOCAB)
    sampled_rollout = rollout()
    before = teacher.score([sampled_rollout])[0].signal
    new_VD = torch.randn(
        VOCAB, reader.width, generator=torch.Generator().manual_seed(3)
    ).bfloat16()
    array = new_VD.view(torch.uint16).numpy() if bits else new_VD.float().numpy()
    array.setflags(write=False)
    other = np.zeros((VOCAB, reader.width), np.float32)
    embedding, head = (array, other) if tied else (other, array)
    weights = {"model.embed_tokens.weight": embedding, "lm_head.weight": head}
    teacher.update(3, list(in_buckets(weights.items(), policy_version=3, max_bytes=1)))
    assert [name for name, _ in reader.loaded] == list(weights)

    after = teacher.score([sampled_rollout])[0].signal
    logq_NV = expected_logq(
        reader,
        new_VD.double(),
        sampled_rollout.teacher_prompt_ids_P,
        sampled_rollout.response_ids_N,
    )
    assert isinstance(before, TopkSignal)
    assert isinstance(after, TopkSignal)
    np.testing.assert_allclose(after.logq_NM, -np.sort(-logq_NV), atol=1e-4)
    assert np.abs(after.logq_NM - before.logq_NM).max() > 0.1


def test_weights_without_a_head_or_of_another_version_change_nothing(
    teacher_folder, reader
):
    teacher = actor(teacher_folder, reader)
    sampled_rollout = rollout()
    before = teacher.score([sampled_rollout])[0].token_loss_N
    embedding = [("model.embed_tokens.weight", np.zeros((VOCAB, 64), np.float32))]
    head = [("lm_head.weight", np.zeros((VOCAB, 64), np.float32))]
    for weights, message in (
        (embedding, "hold no lm_head.weight"),
        (head, "was announced"),
    ):
        buckets = list(in_buckets(weights, policy_version=2, max_bytes=1))
        with pytest.raises(TopdError, match=message):
            teacher.update(2 if weights is embedding else 3, buckets)
    assert reader.loaded == []
    np.testing.assert_array_equal(
        teacher.score([sampled_rollout])[0].token_loss_N, before
    )


class Decoder:
    """Decodes tokens whose log-probabilities are `scale` times the reader's logits."""

    def __init__(self, reader: Reader, head_VD: torch.Tensor, *, scale: float) -> None:
        self.reader = reader
        self.head_VD = head_VD
        self.scale = scale

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        (request,) = requests
        ids = request.prompt_ids.tolist()
        logp: list[float] = []
        for _ in range(request.max_tokens):
            state_D = torch.from_numpy(self.reader.states(np.array(ids))[-1]).double()
            logp_V = (self.scale * (self.head_VD @ state_D)).log_softmax(0)
            ids.append(int(logp_V.argmax()))
            logp.append(float(logp_V.max()))
        num_tokens = len(logp)
        yield Generation(
            request_id=request.request_id,
            token_ids_N=np.array(ids[-num_tokens:], np.int32),
            logp_N=np.array(logp, np.float32),
            top_ids_NM=np.zeros((num_tokens, 1), np.int32),
            top_logp_NM=np.zeros((num_tokens, 1), np.float32),
            finish_reason="length",
        )

    def load_weights(self, weights: Iterable[NamedArray]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


def test_an_engine_whose_logits_are_more_than_head_times_state_is_refused(
    teacher_folder: Path, reader: Reader, head_VD: torch.Tensor
) -> None:
    teacher = actor(teacher_folder, reader)
    teacher.refuse_mismatch(Decoder(reader, head_VD, scale=1.0))
    message = (
        r"log p of 8 tokens differs by .* worst: token \d+ at \d, -\d+\.\d{4} where"
    )
    with pytest.raises(WeightsError, match=message):
        teacher.refuse_mismatch(Decoder(reader, head_VD, scale=1 / 8))


def test_a_head_of_other_weights_than_the_engines_is_refused(
    teacher_folder: Path, reader: Reader, head_VD: torch.Tensor
) -> None:
    moved = head_VD + torch.randn(head_VD.shape, generator=torch.Generator())
    with pytest.raises(WeightsError, match="or its head is of other weights"):
        actor(teacher_folder, reader).refuse_mismatch(Decoder(reader, moved, scale=1.0))


def beginning(of: Rollout, num_tokens: int) -> PartialRollout:
    return PartialRollout(
        rollout_id=of.rollout_id,
        policy_version=of.policy_version,
        prompt_ids_P=of.prompt_ids_P,
        teacher_prompt_ids_P=of.teacher_prompt_ids_P,
        response_ids_N=of.response_ids_N[:num_tokens],
    )


def test_what_was_read_ahead_is_not_read_again_and_scores_the_same(
    teacher_folder, reader
):
    whole = rollout()
    num_tokens = len(whole.response_ids_N)
    plain = actor(teacher_folder, reader)
    (scored,) = plain.score([whole])
    read_once, reader.num_read = reader.num_read, 0
    teacher = actor(teacher_folder, reader)
    for length in (2, 4, 4, num_tokens - 1):
        (reading,) = teacher.read_ahead([beginning(whole, length)])
        np.testing.assert_allclose(
            reading.logq_N, scored.logq_N[:length], rtol=1e-5, atol=1e-6
        )
        assert len(reading.entropy_N) == length
    (again,) = teacher.score([whole])
    assert reader.num_read == read_once
    np.testing.assert_array_equal(again.signal.hidden_ND, scored.signal.hidden_ND)
    np.testing.assert_allclose(again.logq_N, scored.logq_N, rtol=1e-5, atol=1e-6)


def test_a_rollout_that_was_cut_needs_no_further_reading(teacher_folder, reader):
    whole = rollout()
    teacher = actor(teacher_folder, reader)
    teacher.read_ahead([beginning(whole, 4)])
    reader.num_read = 0
    cut = replace(
        whole,
        response_ids_N=whole.response_ids_N[:3],
        logp_O=whole.logp_O[:3],
        top_ids_OM=whole.top_ids_OM[:3],
        top_logp_OM=whole.top_logp_OM[:3],
        finish_reason="cut",
    )
    (scored,) = teacher.score([cut])
    assert reader.num_read == 0
    (expected,) = actor(teacher_folder, reader).score([cut])
    np.testing.assert_array_equal(scored.signal.hidden_ND, expected.signal.hidden_ND)


@pytest.mark.parametrize("what", ["other tokens", "other weights", "a later version"])
def test_what_was_read_of_something_else_is_read_again(
    teacher_folder, reader, head_VD, what
):
    whole = rollout()
    teacher = actor(teacher_folder, reader)
    teacher.read_ahead([beginning(whole, 4)])
    if what == "other tokens":
        whole = replace(whole, response_ids_N=whole.response_ids_N[::-1].copy())
    if what == "a later version":
        whole = replace(whole, policy_version=whole.policy_version + 1)
    if what == "other weights":
        weights = [("lm_head.weight", head_VD.float().numpy())]
        teacher.update(1, list(in_buckets(weights, policy_version=1, max_bytes=10**8)))
    reader.num_read = 0
    (scored,) = teacher.score([whole])
    assert (
        reader.num_read
        == len(whole.teacher_prompt_ids_P) + len(whole.response_ids_N) - 1
    )
    (expected,) = actor(teacher_folder, reader).score([whole])
    np.testing.assert_array_equal(scored.signal.hidden_ND, expected.signal.hidden_ND)
