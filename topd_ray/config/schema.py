"""The whole configuration of a run: one section a stage, and every rule between
fields.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from topd_ray.config.base import Dtype, EngineConfig, Section
from topd_ray.config.objective import (
    Method,
    ObjectiveConfig,
    Parts,
    merged_with_method,
    refuse_nonsense,
)

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Name = Annotated[str, Field(min_length=1)]


Solver = Literal["scaling", "geomloss", "exact"]


class RunConfig(Section):
    """What the run is called, how long it lasts, and what it leaves behind."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Folder of the run below `root`."""
    root: Name = "runs"
    """Folder that holds all runs."""
    method: Method = "topd"
    """Sets what `objective` and `teacher.source` leave open; see `METHODS`."""
    seed: NonNegativeInt = 0
    """Every random draw of the run derives from it."""
    steps: PositiveInt | None = None
    """Optimizer steps; by default one pass (`prompts.epochs`) over the prompts."""
    checkpoint_every: PositiveInt = 50
    """Steps between checkpoints; the last step is always one."""
    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints kept."""
    keep_every: NonNegativeInt = 0
    """Besides them, those of every so many steps are kept for good; 0: none."""
    trace: bool = False
    """Write `trace.json`: every call of every actor on a time line, for
    ui.perfetto.dev.
    """
    wandb_project: str | None = None
    """Also log to this Weights & Biases project (needs the `wandb` package)."""


class PromptsConfig(Section):
    """Where prompts come from and how many make a step."""

    path: Name
    """JSONL or Parquet file, or a folder written by `datasets.save_to_disk`."""
    max_tokens: PositiveInt = 800
    """A longer prompt (after the chat template) is dropped, counted and named in
    events.jsonl.
    """
    per_step: PositiveInt = 1
    """Prompts an optimizer step."""
    epochs: PositiveInt = 1
    """Passes over the prompts when `run.steps` is not given."""
    forms: Name = "math"
    """What a teacher with more in its prompt is asked: `math`, `code`, or a YAML file
    of forms.
    """
    max_reference_tokens: PositiveInt = 4096
    """A longer reference solution is cut at its tail (paper of TRD: 4096)."""
    max_form_tokens: PositiveInt = 512
    """Room for the words of the form itself, beside problem, reference and attempt."""


class RolloutConfig(Section):
    """The student's own samples."""

    engine: EngineConfig = EngineConfig()
    num_engines: PositiveInt = 1
    """Rollout engines; prompts of a step are dealt out round-robin."""
    samples_per_prompt: PositiveInt = 4
    """Rollouts of one prompt (paper: 4)."""
    temperature: NonNegativeFloat = 1.0
    """Paper: 1."""
    top_p: Fraction = 1.0
    """Paper: 1."""
    top_k: NonNegativeInt = 0
    """Only the so many most likely tokens are drawn from; 0 for all."""
    max_response_tokens: PositiveInt = 8000
    """Decoding stops here at the latest (paper: 8000)."""
    chunk_size: PositiveInt = 16
    """Finished rollouts handed on together; the unit in which a step streams."""
    num_top: PositiveInt = 32
    """Most likely ids kept a position, for the candidate loss (`reverse_kl`)."""
    max_staleness: NonNegativeInt = 0
    """Steps that a rollout's weights may lie behind those it trains: 0 is strictly
    on-policy; with 1 the engines decode the next step's rollouts while this one trains.
    Reverse KL and gradient are of the live student. After a checkpoint a step is
    on-policy again.
    """


class TeacherConfig(Section):
    """The model whose distribution is distilled, and how much of it the learner gets to
    see.
    """

    source: Literal["model", "student"] = "model"
    """`student`: self-distillation, the teacher is the student with more in its prompt
    (OPSD).
    """
    model: Name | None = None
    """Folder (or hub name) of the teacher, safetensors; none where `source` is
    `student`.
    """
    follow_every: NonNegativeInt = 0
    """With `source: student`: take its new weights every so many steps; 0: those of the
    start.
    """
    signal: Literal["hidden", "topk", "sampled"] = "hidden"
    """`hidden`: hidden states, so the full vocabulary is exact; `topk`:
    log-probabilities of the teacher's `top_k` ids and a tail; `sampled`: of the sampled
    token alone.
    """
    top_k: PositiveInt = 32
    """Ids a position, with `signal: topk`."""
    tail: Literal["bucket", "renormalise"] = "bucket"
    """All other ids as one bucket, or left out and both sides renormalised over the
    `top_k`.
    """
    size_b: PositiveFloat | None = None
    """Parameters in billions, for `topd check`'s plan where the folder is not on this
    machine.
    """
    engine: EngineConfig = EngineConfig()
    num_engines: PositiveInt = 1
    """Teacher scoring engines."""


class CandidatesConfig(Section):
    """Which positions are worth a probe."""

    loss: Literal["reverse_kl", "log_ratio", "teacher_nll"] = "reverse_kl"
    """D1. reverse_kl: KL(student || teacher) on the student's top ids and a tail
    bucket; log_ratio: log p_S(y_t) - log p_T(y_t); teacher_nll: -log p_T(y_t).
    """
    fraction: Fraction = 0.0225
    """D2. Share of a rollout's positions, the highest losses (paper: 218 / 9688)."""
    min_per_rollout: NonNegativeInt = 1
    """At least so many, where the rollout is long enough."""
    min_window: PositiveInt = 8
    """A position with fewer response tokens left is no candidate."""


class ProbeConfig(Section):
    """Both models' near future from a candidate's prefix, and the transport between
    them.
    """

    engine: Literal["shared"] | EngineConfig = "shared"
    """`shared`: the teacher's scoring engine continues (or rewrites) too: one copy of
    the teacher, and a probe's prefix is in its cache. An engine section: each probe
    worker has its own.
    """
    num_workers: PositiveInt = 1
    """Probe workers: they solve the transport, and decode where they have engines of
    their own.
    """
    cpus: NonNegativeFloat = 1.0
    """Logical CPUs that Ray sets aside for a probe worker without an engine."""
    student: Literal["rollout", "resample"] = "rollout"
    """D3. The student's continuation: its own rollout from the candidate on, or K fresh
    tokens.
    """
    embedding: Literal["teacher", "student"] = "teacher"
    """D5. Whose input embeddings measure the ground cost; the student's are those of
    its start, so that distances keep their meaning while it moves.
    """
    window: PositiveInt = 50
    """K: tokens each side continues for (paper: 50)."""
    teacher_temperature: NonNegativeFloat = 0.0
    """D4. 0 is greedy."""
    teacher_top_p: Fraction = 1.0
    """D4. Nucleus of the teacher's continuation when the temperature is above 0."""
    solver: Solver = "scaling"
    """D6. Entropic plans, in the scaling domain or by GeomLoss (the same plan, slower),
    or `exact` ones (assignment / EMD, on the CPU).
    """
    epsilon: PositiveFloat = 0.05
    """D6. Entropic blur in units of the ground cost (1 - cos, so 0..2)."""


class DivergenceConfig(Section):
    """D7. When a candidate is a real divergence."""

    rule: Literal["quantile", "absolute", "low_loss_q75"] = "quantile"
    """`quantile`: D_OT above the quantile of recent candidates; `absolute`: above
    `threshold`; `low_loss_q75`: above the upper quartile of as many low-loss positions,
    which are probed too.
    """
    quantile: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.30
    """Share of recent high-loss candidates taken for false alarms (paper: 29.23 %)."""
    threshold: NonNegativeFloat | None = None
    """D_OT above which a candidate diverges; required by `absolute`, refused by
    `quantile`.
    """
    history: PositiveInt = 4096
    """Candidates that the running quantile remembers; checkpointed with the run."""

    @model_validator(mode="after")
    def _threshold_goes_with_absolute(self) -> Self:
        if self.rule == "absolute" and self.threshold is None:
            raise ValueError(
                "windows.divergence.threshold is missing: rule=absolute needs one"
            )
        if self.rule == "quantile" and self.threshold is not None:
            raise ValueError(
                f"windows.divergence.threshold={self.threshold} has no effect with"
                " rule=quantile; set rule=absolute or drop it"
            )
        return self


class WindowsConfig(Section):
    """From probes to micro-batches."""

    divergence: DivergenceConfig = DivergenceConfig()
    token_budget: PositiveInt = 16384
    """Most tokens (padding included) of one micro-batch; a longer rollout gets one of
    its own.
    """


class RewriteConfig(Section):
    """The teacher's rewrite of a rollout (TRD), decoded by the probe workers'
    engines.
    """

    temperature: NonNegativeFloat = 0.6
    """Paper of TRD: 0.6."""
    top_p: Fraction = 0.95
    """Paper of TRD: 0.95."""
    top_k: NonNegativeInt = 20
    """Paper of TRD: 20; 0 for all."""
    max_response_tokens: PositiveInt | None = None
    """By default `rollout.max_response_tokens`."""
    keep: Literal["all", "pass", "fail_to_pass"] = "all"
    """Which rewrites are trained on, by their answers; the others are dropped and
    counted.
    """


class LearnerConfig(Section):
    """The student and its optimizer."""

    model: Name
    """Folder (or hub name) of the student to start from, safetensors."""
    size_b: PositiveFloat | None = None
    """Parameters in billions, for `topd check`'s plan where the folder is not on this
    machine.
    """
    num_ranks: PositiveInt = 1
    """Data-parallel learner ranks, one Ray actor each."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    """DeepSpeed ZeRO: 0 nothing sharded, 1 optimizer, 2 and gradients, 3 and weights.
    In bfloat16, 0 and 1 run as 2.
    """
    dtype: Dtype = "bfloat16"
    """Of the forward and backward pass; the optimizer keeps float32."""
    lr: PositiveFloat = 2e-6
    """Peak learning rate (paper, stage 2: 2e-6)."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW."""
    warmup_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """Share of the steps over which the learning rate rises linearly."""
    lr_floor_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """The cosine ends at this share of `lr`; 1 keeps it constant after the warm-up."""
    clip: PositiveFloat = 1.0
    """Global gradient norm is clipped here (paper: 1)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more compute."""
    cpus: NonNegativeFloat = 1.0
    """Logical CPUs that Ray sets aside for one rank."""
    gpus: NonNegativeFloat = 0.0
    """GPUs that Ray sets aside for one rank; a fraction shares one."""


class WeightsConfig(Section):
    """How new weights travel from the learner to the rollout engines."""

    bucket_mib: PositiveInt = 256
    """Size of one piece in the object store, in MiB."""


class EvaluationConfig(Section):
    """Held-out problems, answered greedily before and after training."""

    path: Name | None = None
    """Problems with an `answer`, in any of the prompt formats; none: no evaluation."""
    num_problems: PositiveInt = 500
    """The first so many are asked."""
    max_response_tokens: PositiveInt | None = None
    """By default `rollout.max_response_tokens`."""
    every: NonNegativeInt = 0
    """Also evaluate every so many steps; 0 only before and after."""


class HealthConfig(Section):
    """When a step's update is not to be trusted: it is skipped, and what it was made of
    is kept in `dumps/` for `topd replay`. A loss or gradient that is not finite always
    is one.
    """

    max_bad_steps: PositiveInt = 3
    """The run stops after so many of them in a row."""
    max_rollout_kl: PositiveFloat = 1.0
    """Nats a token between the policy that sampled and the one that is trained.
    On-policy it is rounding; more says that an engine holds other weights than it
    should.
    """
    min_entropy: NonNegativeFloat = 1e-4
    """Mean -log p of the sampled tokens, in nats: below it the student has
    collapsed.
    """
    max_truncated: Fraction | None = None
    """Share of a step's rollouts that were cut at the token limit, from which on the
    step is bad; 1: only where all were. None: only a metric, since limits below the
    usual length are common (paper: a limit of 8000, and rollouts of 9688 tokens on
    average).
    """


class ClusterConfig(Section):
    """Where the actors run and how long anything may take."""

    address: str | None = None
    """Ray cluster to join (`auto`: the one this machine belongs to); none starts a
    local one. A job submitted with `ray job submit` always joins its own cluster.
    """
    object_store_gib: PositiveFloat = 2.0
    """Object store of the local cluster, in GiB."""
    start_deadline_s: PositiveFloat = 600.0
    """Longest wait for an actor to load its model."""
    call_deadline_s: PositiveFloat = 1800.0
    """Longest wait for one call of an actor; then it counts as lost."""
    max_failures: NonNegativeInt = 3
    """Actors lost (dead, or silent beyond their deadline) that a session survives: an
    engine or a probe worker is replaced, with a learner rank the run goes back to its
    newest checkpoint.
    """
    grace_s: PositiveFloat = 120.0
    """After SIGTERM, the longest that the steps under way may take until the last
    checkpoint.
    """
    max_chunks_in_flight: PositiveInt = 8
    """Chunks between rollout and learner at one time."""
    placement: Literal["actors", "inline"] = "actors"
    """`inline`: all four roles in the driver's own process, one call after the other,
    without Ray; for many small runs on few cores. Takes `hf` engines, one of each
    role.
    """


class Config(Section):
    """A run, whole."""

    run: RunConfig = RunConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    prompts: PromptsConfig
    rollout: RolloutConfig = RolloutConfig()
    teacher: TeacherConfig = TeacherConfig()
    candidates: CandidatesConfig = CandidatesConfig()
    probe: ProbeConfig = ProbeConfig()
    windows: WindowsConfig = WindowsConfig()
    rewrite: RewriteConfig = RewriteConfig()
    learner: LearnerConfig
    weights: WeightsConfig = WeightsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    health: HealthConfig = HealthConfig()
    cluster: ClusterConfig = ClusterConfig()

    @property
    def uses_probes(self) -> bool:
        """Whether the run looks ahead at all."""
        return self.objective.lambda_traj > 0 or self.objective.downweight != "none"

    @property
    def uses_rewrites(self) -> bool:
        """Whether the teacher rewrites each rollout before it is learned from."""
        return self.objective.trajectory == "rewrite"

    @property
    def probe_engine(self) -> EngineConfig | None:
        """The engine that each probe worker has of its own; None where it has none."""
        decodes = self.uses_probes or self.uses_rewrites
        return self.probe.engine if decodes and self.probe.engine != "shared" else None

    @property
    def num_probe_workers(self) -> int:
        """`probe.num_workers`, or 0 where there is nothing for them to do."""
        return self.probe.num_workers if self.uses_probes or self.probe_engine else 0

    @property
    def teacher_model(self) -> str:
        """Folder or hub name of the teacher, which may be the student's."""
        return self.teacher.model or self.learner.model

    @property
    def response_tokens(self) -> int:
        """Longest response that is learned from."""
        own = self.rollout.max_response_tokens
        return (
            max(own, self.rewrite.max_response_tokens or own)
            if self.uses_rewrites
            else own
        )

    @property
    def teacher_prompt_tokens(self) -> int:
        """Longest prompt of the teacher: the student's, its reference solution, its
        attempt.
        """
        context = self.objective.context
        return (
            self.prompts.max_tokens
            + (self.prompts.max_reference_tokens if "reference" in context else 0)
            + (self.rollout.max_response_tokens if "refine" in context else 0)
            + (0 if context == "plain" else self.prompts.max_form_tokens)
        )

    @property
    def sequence_tokens(self) -> int:
        """Longest prompt + response of the student."""
        return self.prompts.max_tokens + self.response_tokens

    @property
    def student_context_tokens(self) -> int:
        """Longest sequence the student's engine may meet: prompt + response + K + 1."""
        return self.sequence_tokens + self._window + 1

    @property
    def teacher_context_tokens(self) -> int:
        """The same of the teacher's, whose prompt may hold more."""
        return self.teacher_prompt_tokens + self.response_tokens + self._window + 1

    @property
    def _window(self) -> int:
        return self.probe.window if self.uses_probes else 0

    @model_validator(mode="before")
    @classmethod
    def _method_fills_what_is_left_open(cls, values: Any) -> Any:
        return merged_with_method(values)

    @model_validator(mode="after")
    def _the_parts_make_sense_together(self) -> Self:
        refuse_nonsense(
            Parts(
                method=self.run.method,
                objective=self.objective,
                samples_per_prompt=self.rollout.samples_per_prompt,
                teacher_source=self.teacher.source,
                has_teacher_model=self.teacher.model is not None,
                follow_every=self.teacher.follow_every,
                signal=self.teacher.signal,
                checkpoint_every=self.run.checkpoint_every,
                candidate_loss=self.candidates.loss,
                divergence_rule=self.windows.divergence.rule,
                resample=self.probe.student == "resample",
                max_staleness=self.rollout.max_staleness,
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
        for field, count in counts.items():
            if count > 1:
                raise ValueError(
                    f"{field}={count} with cluster.placement=inline; set it to 1"
                )
        return self

    @model_validator(mode="after")
    def _every_engine_can_hold_a_sequence(self) -> Self:
        for field, engine in self._engines():
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
    def _gpus_fit_tensor_parallel(self) -> Self:
        for field, engine in self._engines():
            if engine.tensor_parallel > 1 and engine.gpus != engine.tensor_parallel:
                raise ValueError(
                    f"{field}.gpus={engine.gpus:g} does not fit "
                    f"{field}.tensor_parallel={engine.tensor_parallel}; set gpus to "
                    f"{engine.tensor_parallel}"
                )
        return self

    def _engines(self) -> list[tuple[str, EngineConfig]]:
        engines = [
            ("rollout.engine", self.rollout.engine),
            ("teacher.engine", self.teacher.engine),
        ]
        return engines + (
            [("probe.engine", self.probe_engine)] if self.probe_engine else []
        )
