"""Decode rollouts with the student, in chunks; load new weights between steps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import cast

import numpy as np

from topd_ray.config import RolloutConfig
from topd_ray.engines.protocols import (
    Generation,
    GenerationRequest,
    Progress,
    ReceivingEngine,
    RolloutEngine,
    TransferGroup,
    TransferPiece,
    WakePart,
)
from topd_ray.errors import TopdError
from topd_ray.messages import (
    PAD,
    CandidateSet,
    Ints,
    PartialRollout,
    Prompt,
    Rollout,
    RolloutRequest,
)
from topd_ray.rollout.request_order import FinishedRollouts, RequestOrder
from topd_ray.seeds import derive_seed
from topd_ray.weights.buckets import WeightBucket, open_buckets

_NO_VERSION = -1
"""Of an engine between two pieces of a version: it serves no request."""


class RolloutActor:
    """Prompt -> Rollout. Its weights start as version 0, the student's folder.

    Without an engine it hands on given responses and can decode nothing.
    """

    def __init__(
        self,
        config: RolloutConfig,
        open_engine: Callable[[], RolloutEngine] | None,
        *,
        run_seed: int,
    ) -> None:
        self._config = config
        self._run_seed = run_seed
        self._engine = None if open_engine is None else open_engine()
        self._policy_version = 0
        self._cuts: dict[str, int] = {}
        self._failed_load: TopdError | None = None

    def roll_out(
        self,
        requests: Sequence[RolloutRequest],
        *,
        policy_version: int,
        done: frozenset[str] = frozenset(),
    ) -> Iterator[list[Rollout]]:
        """Yield `chunk_size` rollouts at a time, in the order in which they finish.

        A prompt that brought its response is not decoded; its rollouts come first. The
        same requests under the same weights give the same chunks. `done` names the
        rollouts that an engine sent before it was lost: they are in no chunk, and the
        chunks are those that it would have sent next. Raises TopdError where something
        is to be decoded and the engine holds other weights than `policy_version`, or
        where there is no engine.
        """
        by_id = {request.rollout_id: request for request in requests}
        given = [request for request in requests if _is_given(request)]
        to_decode = [request for request in requests if not _is_given(request)]
        decoded: Iterator[Generation] = iter(())
        if to_decode:
            self._refuse_stale("rollouts", policy_version)
            # Rollouts in `done` are decoded too: which ends first depends on what else
            # is in the batch, and the chunks must be those of the first attempt.
            decoded = self.engine.generate(
                [self._generation_request(request) for request in to_decode]
            )
        rollouts = chain(
            (_rollout(_given(request), request, policy_version) for request in given),
            (
                _rollout(answer, by_id[answer.request_id], policy_version)
                for answer in decoded
            ),
        )
        missing = (rollout for rollout in rollouts if rollout.rollout_id not in done)
        while chunk := list(islice(missing, self._config.chunk_size)):
            yield chunk

    def roll_out_in_pieces(
        self,
        requests: Sequence[RolloutRequest],
        *,
        policy_version: int,
        stride: int,
        done: frozenset[str] = frozenset(),
        cuts: Mapping[str, int] | None = None,
    ) -> Iterator[list[PartialRollout] | FinishedRollouts]:
        """Yield beginnings of rollouts while they are decoded, and finished chunks.

        The chunks hold `chunk_size` rollouts in the order of the requests: which of
        them ends first depends on when it is cut.

        Args:
            requests: What is to be decoded.
            policy_version: Version of the weights that the engine must hold.
            stride: Tokens of a rollout between two of its beginnings.
            done: Rollouts that an engine sent before it was lost: they are in no chunk.
            cuts: Tokens that rollouts are cut to, as far as it is known; `cut` adds to
                it.

        Raises:
            TopdError: The engine holds other weights, or there is no engine.
        """
        self._refuse_stale("rollouts", policy_version)
        by_id = {request.rollout_id: request for request in requests}
        self._cuts = dict(cuts or {})
        queue = RequestOrder(
            [name for name in by_id if name not in done], self._config.chunk_size
        )
        for outputs in self.engine.generate_in_pieces(
            [self._generation_request(request) for request in requests],
            stride=stride,
            cuts=self._cuts,
        ):
            partials = []
            for output in outputs:
                request = by_id[output.request_id]
                if isinstance(output, Progress):
                    partials.append(_partial(output, request, policy_version))
                else:
                    finished = _rollout(output, request, policy_version)
                    queue.add(finished, output.num_overshot)
            if partials:
                yield partials
            yield from queue.chunks()

    def cut(self, cuts: Mapping[str, int]) -> None:
        """Cut rollouts that are being decoded to so many tokens.

        May be called from another thread. A rollout that has ended stays as it is.
        """
        self._cuts.update(cuts)

    def resample(
        self, candidates: Sequence[CandidateSet], *, window: int, policy_version: int
    ) -> list[Ints]:
        """Return fresh windows of the student from every candidate's prefix (D3).

        Returns one (W, K) array a rollout, K = `window`, in the order of its positions,
        padded with PAD where the student ended. Windows are sampled as rollouts are,
        and are the same in every retry. A `roll_out` that still streams ends. Raises
        TopdError for another `policy_version`, as `roll_out` does.
        """
        self._refuse_stale("windows", policy_version)
        requests = list(
            chain.from_iterable(
                self._window_requests(candidate_set, window)
                for candidate_set in candidates
            )
        )
        answers = {
            answer.request_id: answer.token_ids_N
            for answer in self.engine.generate(requests)
        }
        return [
            _window_rows(candidate_set, answers, window) for candidate_set in candidates
        ]

    @property
    def engine(self) -> RolloutEngine:
        """Return the engine under its current weights, for evaluation between steps.

        Raises TopdError where the actor was made without one, or where its last load
        of weights failed.
        """
        self._refuse_failed_load()
        if self._engine is None:
            raise TopdError(
                "this rollout actor has no engine and was asked to decode; it works"
                " without an engine only where every prompt has a given response"
            )
        return self._engine

    def update(self, policy_version: int, buckets: Sequence[WeightBucket]) -> None:
        """Load the weights of `policy_version` and drop every cached prefix.

        Where the load fails, every later call raises its error, until a load succeeds.
        """
        if self._engine is not None:
            weights = open_buckets(buckets, policy_version=policy_version)
            with self._loading(policy_version):
                self._engine.load_weights(weights)
        self._failed_load = None
        self._policy_version = policy_version

    def join(self, group: TransferGroup, *, rank_offset: int) -> None:
        """Join the learner in a group; waits until all other engines have joined."""
        self._receiver.join(group, rank_offset=rank_offset)

    def take_piece(self, policy_version: int, piece: TransferPiece) -> None:
        """Load a piece of the weights of `policy_version`, with the last the version.

        Between two pieces, and where one fails, the engine holds no version.
        """
        with self._loading(policy_version):
            self._failed_load = None
            self._policy_version = _NO_VERSION
            self._receiver.take_piece(piece)
        if piece.is_last:
            self._policy_version = policy_version

    @property
    def _receiver(self) -> ReceivingEngine:
        # The config refuses a transport with engines of other kinds.
        return cast("ReceivingEngine", self.engine)

    @contextmanager
    def _loading(self, policy_version: int) -> Iterator[None]:
        """Keep the error of a load for the calls behind it."""
        try:
            yield
        # Any exception of the engine is kept: the calls that were submitted behind
        # this one fail too, and one of those may be the first that the driver hears of.
        except Exception as error:
            kind = type(error) if isinstance(error, TopdError) else TopdError
            self._failed_load = kind(
                f"loading the weights of policy_version {policy_version} failed:"
                f" {type(error).__name__}: {error}"
            )
            raise

    def sleep(self) -> None:
        """Give the memory of the GPU to others; the weights keep their version."""
        if self._engine is not None:
            self._engine.sleep()

    def wake(self, part: WakePart) -> None:
        """Take the memory back: all of it, or enough to load new weights."""
        if self._engine is not None:
            self._engine.wake(part)

    def close(self) -> None:
        """Free the engine, where there is one."""
        if self._engine is not None:
            self._engine.close()

    def _refuse_failed_load(self) -> None:
        if self._failed_load is not None:
            raise self._failed_load

    def _refuse_stale(self, what: str, policy_version: int) -> None:
        self._refuse_failed_load()
        if policy_version != self._policy_version:
            raise TopdError(
                f"{what} wanted under policy_version {policy_version}, but the engine"
                f" holds {self._policy_version}; publish the weights first"
            )

    def _generation_request(self, request: RolloutRequest) -> GenerationRequest:
        prompt = request.prompt
        return GenerationRequest(
            request_id=request.rollout_id,
            prompt_ids=prompt.token_ids_P,
            max_tokens=self._config.max_response_tokens,
            temperature=self._config.temperature,
            top_p=self._config.top_p,
            top_k=self._config.top_k,
            seed=derive_seed(
                self._run_seed,
                prompt.position,
                prompt.prompt_id,
                request.sample_index,
                "rollout",
            ),
            num_top=self._config.num_top,
        )

    def _window_requests(
        self, candidates: CandidateSet, window: int
    ) -> list[GenerationRequest]:
        return [
            self._window_request(candidates, int(position), window)
            for position in candidates.positions_W
        ]

    def _window_request(
        self, candidates: CandidateSet, position: int, window: int
    ) -> GenerationRequest:
        prefix = candidates.response_ids_N[:position]
        return GenerationRequest(
            request_id=_window_id(candidates, position),
            prompt_ids=np.concatenate([candidates.prompt_ids_P, prefix]),
            max_tokens=window,
            temperature=self._config.temperature,
            top_p=self._config.top_p,
            top_k=self._config.top_k,
            seed=derive_seed(
                self._run_seed, candidates.rollout_id, position, "resample"
            ),
            num_top=0,  # no candidates are searched in a window
        )


def _given(request: RolloutRequest) -> Generation:
    """Return the data's response as a generation; the student sampled none of it."""
    response_ids_N = request.prompt.response_ids_N
    assert response_ids_N is not None
    return Generation(
        request_id=request.rollout_id,
        token_ids_N=response_ids_N,
        logp_N=np.zeros(0, np.float32),
        top_ids_NM=np.zeros((0, 0), np.int32),
        top_logp_NM=np.zeros((0, 0), np.float32),
        finish_reason=request.prompt.response_finish_reason,
    )


def _is_given(request: RolloutRequest) -> bool:
    return request.prompt.response_ids_N is not None


def _rollout(
    answer: Generation, request: RolloutRequest, policy_version: int
) -> Rollout:
    prompt = request.prompt
    return Rollout(
        rollout_id=request.rollout_id,
        prompt_id=prompt.prompt_id,
        position=prompt.position,
        policy_version=policy_version,
        prompt_ids_P=prompt.token_ids_P,
        teacher_prompt_ids_P=_teacher_prompt(prompt),
        response_ids_N=answer.token_ids_N,
        logp_O=answer.logp_N,
        top_ids_OM=answer.top_ids_NM,
        top_logp_OM=answer.top_logp_NM,
        finish_reason=answer.finish_reason,
    )


def _teacher_prompt(prompt: Prompt) -> Ints:
    """Return the teacher's prompt: its own, or the student's."""
    return prompt.token_ids_P if prompt.teacher_ids_P is None else prompt.teacher_ids_P


def _partial(
    progress: Progress, request: RolloutRequest, policy_version: int
) -> PartialRollout:
    prompt = request.prompt
    return PartialRollout(
        rollout_id=request.rollout_id,
        policy_version=policy_version,
        prompt_ids_P=prompt.token_ids_P,
        teacher_prompt_ids_P=_teacher_prompt(prompt),
        response_ids_N=progress.token_ids_N,
    )


def _window_rows(
    candidates: CandidateSet, answers: Mapping[str, Ints], window: int
) -> Ints:
    """Return the windows of one rollout, (W, K), padded behind the student's end."""
    rows_WK = np.full((len(candidates.positions_W), window), PAD, dtype=np.int32)
    for row_K, position in zip(rows_WK, candidates.positions_W, strict=True):
        token_ids_N = answers[_window_id(candidates, int(position))]
        row_K[: len(token_ids_N)] = token_ids_N
    return rows_WK


def _window_id(candidates: CandidateSet, position: int) -> str:
    return f"{candidates.rollout_id}@{position}"
