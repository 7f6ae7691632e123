"""Config sections of the stages, in the order in which a prompt passes them."""

from datetime import date
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from topd_ray.config.base import (
    ColumnNames,
    Dtype,
    EngineConfig,
    Fraction,
    Name,
    Section,
    Variables,
)

Solver = Literal["scaling", "geomloss", "exact"]


class PromptsConfig(Section):
    """Where prompts come from and how many make a step."""

    path: Name
    """JSONL or Parquet file, or a folder written by `datasets.save_to_disk`."""
    max_tokens: PositiveInt = 800
    """Longest prompt in tokens, after the chat template. A longer one is dropped,
    counted, and named in events.jsonl.
    """
    per_step: PositiveInt = 1
    """Prompts of an optimizer step."""
    epochs: PositiveInt = 1
    """Passes over the prompts when `run.steps` is not given."""
    forms: Name = "math"
    """How a teacher that sees more than the prompt is asked: `math`, `code`, or a YAML
    file of forms.
    """
    truncated: Literal["keep", "drop"] = "drop"
    """What becomes of a prompt whose given response (`objective.trajectory: given`) has
    no end: its row says `finish_reason: length`, its `response_ids` lack EOS, or it is
    longer than `rollout.max_response_tokens`. `drop` leaves it out, counts it, and
    names it in events.jsonl; `keep` trains on what is there, without an EOS.
    """
    max_reference_tokens: PositiveInt = 4096
    """A longer reference solution loses its tail (paper of TRD: 4096)."""
    max_form_tokens: PositiveInt = 512
    """Room for the words of the form itself, beside problem, reference and attempt; and
    for what `teacher.template: own` writes beyond the student's prompt.
    """
    columns: ColumnNames = Field(default_factory=dict)
    """Names of the columns that hold what a row brings, where they are not the usual
    ones: `{prompt: query, answer: meta.gold}`. A dot leads into a column of objects;
    null leaves out a column that would be read.
    """
    chat_template_kwargs: Variables = Field(default_factory=dict)
    """Variables for the chat template, beside `enable_thinking: false` (paper), which
    `{enable_thinking: true}` overrides.
    """
    today: date | None = None
    """The date that a chat template writes into each prompt where it asks the clock
    (Llama 3). None: such a template is refused, since a resumed run would read other
    prompts.
    """


class RolloutConfig(Section):
    """How the student answers the prompts."""

    engine: EngineConfig = EngineConfig()
    num_engines: PositiveInt = 1
    """Rollout engines; the rollouts of a step are dealt to them in turn."""
    samples_per_prompt: PositiveInt = 4
    """Rollouts of one prompt (paper: 4)."""
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature of the student; 0 is greedy (paper: 1)."""
    top_p: Fraction = 1.0
    """Nucleus that the student samples from; 1 is the whole vocabulary (paper: 1)."""
    top_k: NonNegativeInt = 0
    """The student samples from this many most likely tokens; 0: from all."""
    max_response_tokens: PositiveInt = 8000
    """Longest response in tokens; decoding stops there (paper: 8000)."""
    chunk_size: PositiveInt = 16
    """Finished rollouts that are handed on together: a step streams in chunks."""
    num_top: PositiveInt = 32
    """Most likely ids kept at each position, for the candidate loss `reverse_kl`."""
    max_staleness: NonNegativeInt = 0
    """Steps by which the weights of a rollout may lag behind the weights it trains. 0
    is strictly on-policy. With 1 the engines decode the rollouts of the next step while
    this one trains. Reverse KL and gradient are those of the live student. The first
    step after a checkpoint is on-policy again.
    """


class TeacherConfig(Section):
    """The model that is distilled, and what the learner sees of its distribution."""

    source: Literal["model", "student"] = "model"
    """`model`: the teacher is `teacher.model`. `student`: self-distillation (OPSD), the
    teacher is the student with more in its prompt.
    """
    model: Name | None = None
    """Folder or hub name of the teacher, in safetensors; none where `source` is
    `student`.
    """
    revision: Name | None = None
    """Commit, branch or tag of the hub's model; by default its main branch. The run
    folder keeps the commit, so that a resumed run takes the same weights.
    """
    follow_every: NonNegativeInt = 0
    """With `source: student`: steps after which the teacher takes the student's new
    weights; 0: it keeps those of the start.
    """
    template: Literal["same", "own", "student"] = "same"
    """Whose chat template makes the teacher's prompts. `same`: both templates must give
    each prompt the same ids. `own`: the teacher's, so that its prompt may differ from
    the student's. `student`: the student's, for a teacher without one.
    """
    chat_template_kwargs: Variables | None = None
    """Variables for the template of the teacher's prompts, e.g. `{enable_thinking:
    true}`; by default those of the student's.
    """
    signal: Literal["hidden", "topk", "sampled"] = "hidden"
    """`hidden`: hidden states, from which the full vocabulary is exact. `topk`:
    log-probabilities of the teacher's `top_k` ids and of the rest as a tail. `sampled`:
    the log-probability of the sampled token alone.
    """
    top_k: PositiveInt = 32
    """Ids kept at each position, with `signal: topk`."""
    tail: Literal["bucket", "renormalise"] = "bucket"
    """With `signal: topk`: all other ids are one bucket, or they are left out and both
    sides are renormalised over the `top_k`.
    """
    size_b: PositiveFloat | None = None
    """Parameters in billions, for the plan of `topd check` where the folder is not on
    this machine.
    """
    engine: EngineConfig = EngineConfig()
    num_engines: PositiveInt = 1
    """Teacher engines that score, and that also continue where `probe.engine` is
    `shared`.
    """


class CandidatesConfig(Section):
    """Which positions are worth a probe."""

    loss: Literal["reverse_kl", "log_ratio", "teacher_nll"] = "reverse_kl"
    """D1. `reverse_kl`: KL(student || teacher) on the student's top ids and a tail
    bucket. `log_ratio`: log p_S(y_t) - log p_T(y_t). `teacher_nll`: -log p_T(y_t).
    """
    fraction: Fraction = 0.0225
    """D2. Share of the positions of a rollout, those with the highest losses (paper:
    218 of 9688).
    """
    min_per_rollout: NonNegativeInt = 1
    """Fewest candidates of a rollout that is long enough to have them."""
    min_window: PositiveInt = 8
    """A position with fewer response tokens left is no candidate."""


class ProbeConfig(Section):
    """How both models continue from a candidate, and the transport between the two."""

    engine: Literal["shared"] | EngineConfig = "shared"
    """`shared`: the teacher's scoring engine also continues and rewrites, so there is
    one copy of the teacher, and the prefix of a probe is in its cache. An engine
    section: each probe worker has an engine.
    """
    num_workers: PositiveInt = 1
    """Probe workers. They solve the transport, and decode where they have engines."""
    cpus: NonNegativeFloat = 1.0
    """Logical CPUs that Ray sets aside for a probe worker without an engine."""
    student: Literal["rollout", "resample"] = "rollout"
    """D3. The student's continuation: `rollout`, its rollout from the candidate on, or
    `resample`, K fresh tokens.
    """
    embedding: Literal["teacher", "student"] = "teacher"
    """D5. Whose input embeddings measure the ground cost. Those of the student are the
    ones it starts with, so that distances keep their meaning while it learns.
    """
    centred: bool = False
    """D5. Whether the table's mean row is subtracted from every embedding before the
    cosine. Embeddings of pretrained models share a large common direction, which makes
    all tokens look alike; without it, distances spread over the whole range.
    """
    window: PositiveInt = 50
    """K: tokens that each side continues for (paper: 50)."""
    teacher_temperature: NonNegativeFloat = 0.0
    """D4. Temperature of the teacher's continuation; 0 is greedy."""
    teacher_top_p: Fraction = 1.0
    """D4. Nucleus of the teacher's continuation when the temperature is above 0."""
    solver: Solver = "scaling"
    """D6. `scaling`: entropic plans in the scaling domain. `geomloss`: the same plans
    by GeomLoss, slower. `exact`: assignment or EMD, on the CPU.
    """
    epsilon: PositiveFloat = 0.05
    """D6. Entropic blur in units of the ground cost (1 - cos, so 0..2)."""


class DivergenceConfig(Section):
    """D7. When a candidate is a real divergence."""

    rule: Literal["quantile", "absolute", "low_loss_q75"] = "quantile"
    """`quantile`: D_OT above the quantile of recent candidates. `absolute`: D_OT above
    `threshold`. `low_loss_q75`: D_OT above the upper quartile of as many low-loss
    positions, which are probed too.
    """
    quantile: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.30
    """Share of recent high-loss candidates taken for false alarms (paper: 29.23 %)."""
    threshold: NonNegativeFloat | None = None
    """D_OT above which a candidate diverges; `absolute` requires it, `quantile` refuses
    it.
    """
    history: PositiveInt = 4096
    """Candidates that the running quantile remembers; a checkpoint holds them."""

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
    """How probes become micro-batches."""

    divergence: DivergenceConfig = DivergenceConfig()
    token_budget: PositiveInt = 16384
    """Most tokens of one micro-batch, which is packed without padding; a longer rollout
    is a micro-batch by itself.
    """


class RewriteConfig(Section):
    """How the teacher rewrites a rollout (TRD).

    The teacher's engine decodes the rewrite, or the engine of a probe worker where
    `probe.engine` is a section.
    """

    temperature: NonNegativeFloat = 0.6
    """Sampling temperature of a rewrite; 0 is greedy (paper of TRD: 0.6)."""
    top_p: Fraction = 0.95
    """Nucleus that a rewrite is sampled from (paper of TRD: 0.95)."""
    top_k: NonNegativeInt = 20
    """A rewrite is sampled from this many most likely tokens; 0: from all (paper of
    TRD: 20).
    """
    max_response_tokens: PositiveInt | None = None
    """Longest rewrite in tokens; by default `rollout.max_response_tokens`."""
    keep: Literal["all", "pass", "fail_to_pass"] = "all"
    """Which rewrites are trained on: all of them, those with the right answer, or those
    that turn a wrong answer into the right one. The others are dropped and counted.
    """


class TakeoverConfig(Section):
    """Where the teacher takes a rollout over, and how it goes on.

    From the fork on, its continuation stands in the place of the student's tokens.
    """

    verdict: Literal["confident", "surprise", "d_ot", "both", "never", "always"] = (
        "confident"
    )
    """What makes a position the fork. `confident`: the first at which the teacher is
    sure and the student's token is not what it is sure of. `surprise`: the first whose
    token surprises the teacher by more than it expects, -log p_T(y_t) minus its
    entropy, with a running `quantile` as limit: for models whose certainty is not known
    beforehand. `d_ot`: the first of the
    `candidates` earliest unlikely tokens whose D_OT is above the threshold of D7.
    `both`: the same among the positions of `confident`. `never`: none, so that the run
    is OPD. `always`: the first token, so that it is distillation on the teacher's
    answers.
    """
    max_teacher_prob: Fraction = 0.02
    """A token of the student is unlikely where the teacher gives it less than this."""
    max_teacher_entropy: PositiveFloat = 0.5
    """The teacher is sure where its entropy is below this many nats."""
    quantile: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.98
    """With `surprise`: share of recent tokens, up to the forks, that are taken for no
    error. `windows.divergence.history` tokens are remembered.
    """
    candidates: PositiveInt = 3
    """Earliest positions that are probed, with `d_ot` and `both`."""
    tokens: PositiveInt | None = None
    """Most tokens of the teacher's continuation; by default it goes on to the end, or
    to `rollout.max_response_tokens`.
    """
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature of the continuation; 0 is greedy."""
    stride: PositiveInt | None = None
    """Tokens after which the teacher reads on while the student still decodes. At the
    fork the student is stopped and the teacher goes on; what is trained is the same.
    None: rollouts are read when they are whole.
    """
    keep: Literal["all", "pass", "fail_to_pass"] = "all"
    """Which taken-over responses are trained on: all of them, those with the right
    answer, or those that turn a wrong answer into the right one. The others are dropped
    and counted. A response without a fork is always kept.
    """


class LoraConfig(Section):
    """Adapters of low rank that are trained in the place of the student's weights.

    A weight W of a target layer acts as W + alpha / rank x B A; A and B are trained, W
    and all other weights stay. Engines and exports get the merged weights.
    """

    rank: PositiveInt = 32
    """Rows of A and columns of B."""
    alpha: PositiveFloat = 64.0
    """The product of both is scaled by alpha / rank."""
    targets: Annotated[tuple[Name, ...], Field(min_length=1)] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """Names of the linear layers that have an adapter: the last part of a name, or
    more of it (`layers.0.mlp.up_proj`). By default all of a Llama, Qwen or Mistral but
    the output head.
    """


class LearnerConfig(Section):
    """The student and its optimizer."""

    model: Name
    """Folder or hub name of the student to start from, in safetensors."""
    revision: Name | None = None
    """Commit, branch or tag of the hub's model; by default its main branch. The run
    folder keeps the commit, so that a resumed run takes the same weights.
    """
    size_b: PositiveFloat | None = None
    """Parameters in billions, for the plan of `topd check` where the folder is not on
    this machine.
    """
    num_ranks: PositiveInt = 1
    """Learner ranks, one Ray actor each."""
    sequence_parallel: PositiveInt = 1
    """Ranks that share each sequence and hold a part of its tokens, for long responses
    (DeepSpeed Ulysses). It divides `num_ranks`: the rest of it is data parallel.
    """
    zero_stage: Annotated[int, Field(ge=0, le=3)] | None = None
    """DeepSpeed ZeRO: 0 shards nothing, 1 the optimizer, 2 also gradients, 3 also
    weights. By default 2 with several ranks: 3 gathers every weight twice a
    micro-batch, and is for students whose weights do not fit beside the rest: no rank
    ever holds them whole, also while they are loaded. In bfloat16, 0 and 1 run as 2.
    """
    dtype: Dtype = "bfloat16"
    """Number format of the forward and backward pass; the optimizer keeps float32."""
    lora: LoraConfig | None = None
    """Train adapters of low rank in the place of the weights; None trains the weights.
    Adapters need a higher `lr`, about ten times that of the weights.
    """
    lr: PositiveFloat = 2e-6
    """Peak learning rate (paper, stage 2: 2e-6)."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of AdamW's two moments."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay of AdamW."""
    warmup_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """Share of the steps over which the learning rate rises linearly (paper: 0.05)."""
    lr_floor_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """The cosine ends at this share of `lr`; 1 keeps the rate constant after the
    warm-up.
    """
    clip: PositiveFloat = 1.0
    """Largest global norm of a gradient; a larger one is scaled down (paper: 1)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more compute."""
    cpus: NonNegativeFloat = 1.0
    """Logical CPUs that Ray sets aside for one rank."""
    gpus: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """GPU of one rank, by `cluster.layout: manual`; a fraction shares it with engines,
    never with another rank. 0: a CPU. The other layouts set it to 1.
    """

    @property
    def running_zero_stage(self) -> int:
        """The ZeRO stage that runs."""
        stage = self.zero_stage
        if stage is None:
            stage = 2 if self.num_ranks > 1 else 0
        return stage if self.dtype == "float32" else max(stage, 2)

    @property
    def data_parallel(self) -> int:
        """Shares that the rollouts are dealt into: one for each group of ranks."""
        return self.num_ranks // self.sequence_parallel

    @model_validator(mode="after")
    def _groups_are_whole(self) -> Self:
        if self.num_ranks % self.sequence_parallel:
            raise ValueError(
                f"learner.num_ranks={self.num_ranks} is no multiple of"
                f" learner.sequence_parallel={self.sequence_parallel}: every group of"
                " ranks that shares sequences must be whole; change one of them"
            )
        return self
