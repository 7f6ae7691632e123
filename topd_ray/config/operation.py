"""Config sections around the stages: the run, its evaluation, its health, its place."""

import re
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from topd_ray.config.base import ColumnNames, Fraction, Name, Section
from topd_ray.config.objective import Method

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD)$", re.IGNORECASE)


def _checked_variable(name: str) -> str:
    if not _VARIABLE.fullmatch(name):
        raise ValueError(f"{name!r} is no name of an environment variable")
    if name == "CUDA_VISIBLE_DEVICES":
        raise ValueError(f"{name}: the placement of the actors sets it; drop it")
    if _SECRET.search(name):
        raise ValueError(
            f"{name}: the run folder would hold it in plain text; export it on the"
            " nodes, before `ray start`"
        )
    return name


VariableName = Annotated[str, AfterValidator(_checked_variable)]


class RunConfig(Section):
    """What the run is called, how long it lasts, and what it leaves behind."""

    # A path or a blank in it would put the folder elsewhere, or break a command that
    # resumes the run.
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Name of the run's folder below `root`."""
    root: Name = "runs"
    """Folder that holds all runs."""
    method: Method = "topd"
    """Sets what `objective` and `teacher.source` leave open; see `METHODS`."""
    seed: NonNegativeInt = 0
    """Number that every random draw of the run derives from."""
    steps: PositiveInt | None = None
    """Optimizer steps; by default `prompts.epochs` passes over the prompts."""
    checkpoint_every: PositiveInt = 50
    """Steps between checkpoints; there is always one at the last step."""
    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints that are kept."""
    keep_every: NonNegativeInt = 0
    """The checkpoint of every step that is a multiple of this number is kept as well;
    0: none.
    """
    trace: bool = False
    """Write `trace.json`: every call of every actor on a time line, for
    ui.perfetto.dev.
    """


class EvaluationConfig(Section):
    """Held-out problems, answered greedily before and after training."""

    path: Name | None = None
    """Problems with an `answer`, in any of the prompt formats; none: no evaluation."""
    columns: ColumnNames = Field(default_factory=dict)
    """Names of the columns of that file, as `prompts.columns`."""
    num_problems: PositiveInt = 500
    """How many of the problems are answered, from the first on."""
    max_response_tokens: PositiveInt | None = None
    """Longest answer in tokens; by default `rollout.max_response_tokens`."""
    every: NonNegativeInt = 0
    """Steps between evaluations during training; 0: only before and after."""


class HealthConfig(Section):
    """When the update of a step is skipped because it cannot be trusted.

    What such a step was made of is kept in `dumps/` for `topd replay`. A loss or
    gradient that is not finite always makes a step bad.
    """

    max_bad_steps: PositiveInt = 3
    """The run stops after this many bad steps in a row."""
    max_rollout_kl: PositiveFloat | None = None
    """Nats a token between the policy that sampled and the policy that is trained. More
    says that the rollout engine computes with other weights, or otherwise, than the
    learner; in the first step after a start that ends the run before any update. On
    policy it is rounding, so the default goes by the number format: 0.001 where engine
    and learner compute in float32 (measured: 1e-12), 0.05 where one of them computes in
    bfloat16 (measured: 3e-4). With `rollout.max_staleness` the default is 1 after the
    first step, because the weights have moved since the rollout.
    """
    min_entropy: NonNegativeFloat = 1e-4
    """Mean -log p of the sampled tokens, in nats, below which the student has
    collapsed.
    """
    max_truncated: Fraction | None = None
    """Share of a step's rollouts cut at the token limit that makes the step bad; 1:
    only where all were cut. None: the share is only a metric, because limits below the
    usual length are common (paper: a limit of 8000, and rollouts of 9688 tokens on
    average).
    """
    max_unconverged: Fraction = 0.5
    """Share of a step's windows whose transport did not converge above which the step
    is bad. Such a window gets no verdict: the run would quietly turn into plain OPD.
    """


class ClusterConfig(Section):
    """Where the actors run and how long anything may take."""

    address: str | None = None
    """Ray cluster to join (`auto`: the one this machine belongs to); none starts a
    local one. A job submitted with `ray job submit` always joins its own cluster.
    """
    layout: Literal["manual", "disaggregated", "colocated"] = "manual"
    """Which actor is on which GPU. `manual`: by the fields `gpus`. `disaggregated`:
    every actor has whole GPUs for itself. `colocated`: learner ranks, rollout engines
    and teachers share all GPUs, at most one of each kind on a GPU (paper).
    """
    gpus_per_node: Annotated[int, Field(ge=1, le=128)] = 8
    """GPUs of a machine, for the map of `topd check`; a run takes those it finds."""
    gpu_memory_gib: PositiveFloat | None = None
    """Memory of one GPU in GiB as the driver reports it (H100 80 GB: 79.6). A run that
    needs more is refused. None: memory is summed and not compared.
    """
    turns: bool | None = None
    """Whether roles that share GPUs sleep while others of them work: engines move their
    weights to the host and drop their caches, learner ranks move weights, gradients and
    optimizer. None: where they do not fit together, by `gpu_memory_gib`. With true a
    config without GPUs takes turns too.
    """
    env: dict[VariableName, str] = Field(default_factory=dict)
    """Environment variables of every actor's process, e.g. `NCCL_SOCKET_IFNAME`,
    `NCCL_IB_HCA`, `HF_HOME`, `VLLM_CACHE_ROOT`. Without them an actor has those of `ray
    start` on its machine. No secrets: they are written into the run folder.
    """
    object_store_gib: PositiveFloat = 2.0
    """Object store of the local cluster, in GiB."""
    start_deadline_s: PositiveFloat = 600.0
    """Longest wait for an actor to load its model."""
    call_deadline_s: PositiveFloat = 1800.0
    """Longest wait for one call of an actor; then the call counts as lost."""
    max_failures: NonNegativeInt = 3
    """Actors lost (dead, or silent beyond their deadline) that a run survives within
    `failure_window_steps`: an engine or a probe worker is replaced, with a learner rank
    the run goes back to its newest checkpoint.
    """
    failure_window_steps: PositiveInt = 100
    """Optimizer steps within which lost actors count against `max_failures`."""
    grace_s: PositiveFloat = 120.0
    """Seconds after SIGTERM that the step under way may still take. Then it is
    abandoned and the last finished step is written.
    """
    max_chunks_in_flight: PositiveInt = 8
    """Most chunks between rollout and learner at one time."""
    placement: Literal["actors", "inline"] = "actors"
    """`actors`: each role in processes of Ray. `inline`: all four roles in the driver's
    process, one call after the other, without Ray, for many small runs on few cores; it
    takes `hf` engines, one of each role.
    """

    @model_validator(mode="after")
    def _variables_have_a_process(self) -> Self:
        if self.env and self.placement == "inline":
            raise ValueError(
                f"cluster.env={self.env} with cluster.placement=inline: no actor has"
                " its own process; set them in the shell that starts topd"
            )
        return self
