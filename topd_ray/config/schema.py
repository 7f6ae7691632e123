"""The whole configuration of a run: its sections, and what follows from them."""

from collections.abc import Iterator
from itertools import chain
from typing import Any, Literal, Self

from pydantic import model_validator

from topd_ray.config.base import EngineConfig, Section
from topd_ray.config.layout import layout_rules, merged_with_layout
from topd_ray.config.objective import ObjectiveConfig, merged_with_method
from topd_ray.config.operation import (
    ClusterConfig,
    EvaluationConfig,
    HealthConfig,
    RunConfig,
)
from topd_ray.config.records import RecordsConfig
from topd_ray.config.rules import (
    Rule,
    idle_rules,
    lambda_rules,
    refuse_broken,
    signal_rules,
    staleness_rules,
    stride_rules,
    takeover_rules,
    teacher_rules,
    template_rules,
    trajectory_rules,
    weight_rules,
)
from topd_ray.config.stages import (
    CandidatesConfig,
    DivergenceConfig,
    LearnerConfig,
    ProbeConfig,
    PromptsConfig,
    RewriteConfig,
    RolloutConfig,
    TakeoverConfig,
    TeacherConfig,
    WindowsConfig,
)
from topd_ray.config.turns import turn_rules
from topd_ray.config.weights import WeightsConfig, transport_rules


class Config(Section):
    """Everything that decides what a run does; `topd check` prints what follows.

    A config must name `prompts.path`, `teacher.model` and `learner.model`. With nothing
    else in it the run is TOPD with the numbers of the paper.
    """

    run: RunConfig = RunConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    prompts: PromptsConfig
    rollout: RolloutConfig = RolloutConfig()
    teacher: TeacherConfig = TeacherConfig()
    candidates: CandidatesConfig = CandidatesConfig()
    probe: ProbeConfig = ProbeConfig()
    windows: WindowsConfig = WindowsConfig()
    rewrite: RewriteConfig = RewriteConfig()
    takeover: TakeoverConfig = TakeoverConfig()
    learner: LearnerConfig
    weights: WeightsConfig = WeightsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    health: HealthConfig = HealthConfig()
    records: RecordsConfig = RecordsConfig()
    cluster: ClusterConfig = ClusterConfig()

    @property
    def uses_probes(self) -> bool:
        """Whether candidates are probed, for L_traj, to weigh tokens, or for a fork."""
        return (
            self.objective.lambda_traj > 0
            or self.objective.downweight != "none"
            or (self.uses_takeovers and self.takeover.verdict in ("d_ot", "both"))
        )

    @property
    def threshold_rule(self) -> DivergenceConfig:
        """What sets the threshold of a step: D7, or the same rule over surprises."""
        divergence = self.windows.divergence
        if not (self.uses_takeovers and self.takeover.verdict == "surprise"):
            return divergence
        return DivergenceConfig(
            quantile=self.takeover.quantile, history=divergence.history
        )

    @property
    def needs_threshold(self) -> bool:
        """Whether a step is judged by a threshold that other tokens set."""
        return self.uses_probes or (
            self.uses_takeovers and self.takeover.verdict == "surprise"
        )

    @property
    def uses_rewrites(self) -> bool:
        """Whether the teacher rewrites each rollout before it is learned from."""
        return self.objective.trajectory == "rewrite"

    @property
    def uses_takeovers(self) -> bool:
        """Whether the teacher continues each rollout from its fork on."""
        return self.objective.trajectory == "takeover"

    @property
    def decodes_rollouts(self) -> bool:
        """Whether the rollout engines have anything to decode: samples or answers.

        False for given responses without an evaluation; then no engine is opened.
        """
        return self.objective.trajectory != "given" or self.evaluation.path is not None

    @property
    def on_policy_kl(self) -> float:
        """`health.max_rollout_kl` for rollouts of the very weights that are trained."""
        if self.health.max_rollout_kl is not None:
            return self.health.max_rollout_kl
        dtypes = {self.learner.dtype, self.rollout.engine.dtype}
        return 1e-3 if dtypes == {"float32"} else 0.05

    @property
    def max_rollout_kl(self) -> float:
        """`health.max_rollout_kl` for any step."""
        if self.health.max_rollout_kl is None and self.rollout.max_staleness > 0:
            return 1.0
        return self.on_policy_kl

    @property
    def probe_engine(self) -> EngineConfig | None:
        """Engine of each probe worker; None where it has none, or nothing to decode."""
        decodes = self.uses_probes or self.uses_rewrites
        return self.probe.engine if decodes and self.probe.engine != "shared" else None

    @property
    def transport_device(self) -> Literal["cpu", "cuda"]:
        """Where a probe worker solves transport: on its engine's GPU, if it has one.

        A worker without an engine has booked no GPU, so it must not use any.
        """
        return "cuda" if self.probe_engine and self.probe_engine.gpus else "cpu"

    @property
    def num_probe_workers(self) -> int:
        """`probe.num_workers`, or 0 where probe workers have nothing to do."""
        return self.probe.num_workers if self.uses_probes or self.probe_engine else 0

    @property
    def teacher_model(self) -> str:
        """Folder or hub name of the teacher, which may be the student's."""
        return self.teacher.model or self.learner.model

    @property
    def teacher_revision(self) -> str | None:
        """Revision of `teacher_model` on the hub; None: its main branch."""
        return self.teacher.revision if self.teacher.model else self.learner.revision

    @property
    def response_tokens(self) -> int:
        """Longest response that is learned from, in tokens."""
        rollout = self.rollout.max_response_tokens
        if not self.uses_rewrites:
            return rollout
        # The engine decodes the rollout before it is rewritten, so both limits count.
        return max(rollout, self.rewrite.max_response_tokens or rollout)

    @property
    def teacher_prompt_tokens(self) -> int:
        """Longest prompt of the teacher, in tokens.

        It holds the student's prompt, and by `objective.context` the reference
        solution, the student's attempt, and the words of the form around them. Its own
        template may write more than the student's, for which the form's room is kept.
        """
        context = self.objective.context
        is_student = context == "plain" and self.teacher.template != "own"
        return (
            self.prompts.max_tokens
            + (self.prompts.max_reference_tokens if "reference" in context else 0)
            + (self.rollout.max_response_tokens if "refine" in context else 0)
            + (0 if is_student else self.prompts.max_form_tokens)
        )

    @property
    def sequence_tokens(self) -> int:
        """Longest prompt and response of the student together, in tokens."""
        return self.prompts.max_tokens + self.response_tokens

    @property
    def student_context_tokens(self) -> int:
        """Longest sequence of the student's engine: prompt + response + K + 1."""
        return self.sequence_tokens + self._window + 1

    @property
    def teacher_context_tokens(self) -> int:
        """Longest sequence of the teacher's engine: prompt + response + K + 1."""
        return self.teacher_prompt_tokens + self.response_tokens + self._window + 1

    @property
    def _window(self) -> int:
        return self.probe.window if self.uses_probes else 0

    @model_validator(mode="before")
    @classmethod
    def _method_and_layout_fill_what_is_left_open(cls, values: Any) -> Any:
        # Before validation, where a field that was left open can still be told from one
        # that was set to its default.
        return merged_with_layout(merged_with_method(values))

    @model_validator(mode="after")
    def _sections_go_together(self) -> Self:
        refuse_broken(
            chain(
                lambda_rules(self.run, self.objective),
                template_rules(self.prompts, self.teacher),
                teacher_rules(self.run, self.objective, self.teacher),
                trajectory_rules(self.objective, self.rollout),
                takeover_rules(
                    self.run, self.objective, self.takeover, self.windows.divergence
                ),
                stride_rules(self.objective, self.takeover, self.rollout, self.teacher),
                signal_rules(self.objective, self.rollout, self.teacher),
                weight_rules(
                    self.objective,
                    self.candidates,
                    self.probe,
                    self.windows.divergence,
                    self.learner,
                ),
                staleness_rules(self.objective, self.rollout, self.teacher, self.probe),
                idle_rules(
                    self.objective,
                    self.prompts,
                    self.rollout,
                    self.teacher,
                    self.num_probe_workers,
                    self.learner,
                ),
                transport_rules(self.weights, self.rollout),
            )
        )
        return self

    @model_validator(mode="after")
    def _inline_is_one_of_each(self) -> Self:
        if self.cluster.placement == "actors":
            return self
        for field, engine in self._engines():
            if engine.backend == "vllm":
                raise ValueError(
                    f"{field}.backend=vllm with cluster.placement=inline: a process"
                    f" holds one vLLM engine at most; set {field}.backend=hf, or"
                    " placement=actors"
                )
        counts = {
            "rollout.num_engines": self.rollout.num_engines,
            "teacher.num_engines": self.teacher.num_engines,
            "probe.num_workers": self.probe.num_workers,
            "learner.num_ranks": self.learner.num_ranks,
        }
        # Inline, all calls run in one process, so a second actor would only wait.
        for field, count in counts.items():
            if count > 1:
                raise ValueError(
                    f"{field}={count} with cluster.placement=inline; set it to 1"
                )
        return self

    @model_validator(mode="after")
    def _every_engine_can_hold_a_sequence(self) -> Self:
        for field, engine in self._engines():
            # Only the rollout engine reads the student's prompt; the others read the
            # teacher's, which may be longer.
            student = field == "rollout.engine"
            prompt = self.prompts.max_tokens if student else self.teacher_prompt_tokens
            needed = (
                self.student_context_tokens if student else self.teacher_context_tokens
            )
            if engine.max_model_len is not None and engine.max_model_len < needed:
                window = (
                    f" + probe.window {self.probe.window}" if self.uses_probes else ""
                )
                raise ValueError(
                    f"{field}.max_model_len={engine.max_model_len} is too short: prompt"
                    f" {prompt} + response {self.response_tokens}{window} + 1 ="
                    f" {needed}; raise it to {needed} or leave it out"
                )
        return self

    @model_validator(mode="after")
    def _a_window_can_exist(self) -> Self:
        if self.uses_probes and self.candidates.min_window > self.probe.window:
            raise ValueError(
                f"candidates.min_window={self.candidates.min_window} exceeds "
                f"probe.window={self.probe.window}; lower it"
            )
        return self

    @model_validator(mode="after")
    def _gpus_fit_the_layout(self) -> Self:
        engines = [
            (field, engine)
            for field, engine in self._engines()
            if self.decodes_rollouts or field != "rollout.engine"
        ]
        refuse_broken(layout_rules(self.cluster, engines, self.learner))
        return self

    @model_validator(mode="after")
    def _turns_can_be_taken(self) -> Self:
        if self.cluster.turns:
            refuse_broken(self.turn_rules("cluster.turns=true"))
        return self

    def turn_rules(self, why: str) -> Iterator[Rule]:
        """Yield the rules of a run whose roles take turns; `why` begins each message.

        They hold with `cluster.turns=true`, and where memory asks for turns.
        """
        return turn_rules(
            why,
            cluster=self.cluster,
            rollout=self.rollout,
            probe=self.probe,
            takeover=self.takeover,
            learner=self.learner,
            weights=self.weights,
        )

    def _engines(self) -> list[tuple[str, EngineConfig]]:
        engines = [
            ("rollout.engine", self.rollout.engine),
            ("teacher.engine", self.teacher.engine),
        ]
        return engines + (
            [("probe.engine", self.probe_engine)] if self.probe_engine else []
        )
