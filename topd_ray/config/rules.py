"""Rules between sections: what does not go together is refused by the names of both.

Each rule is a condition that is broken and a message: the fields, the values seen, why
they do not go together, and the way out. A function of rules takes the sections that
its rules read, and no others.
"""

from collections.abc import Iterable, Iterator

from topd_ray.config.objective import ObjectiveConfig
from topd_ray.config.operation import RunConfig
from topd_ray.config.stages import (
    CandidatesConfig,
    DivergenceConfig,
    LearnerConfig,
    ProbeConfig,
    PromptsConfig,
    RolloutConfig,
    TakeoverConfig,
    TeacherConfig,
)

_TEMPLATE_ARGUMENTS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "strftime_now",
        "tokenize",
        "tokenizer_kwargs",
        "truncation",
    }
)
"""Names that transformers' `apply_chat_template` takes for itself."""
Rule = tuple[bool, str]
"""Whether the rule is broken, and the message that says so."""


def refuse_broken(rules: Iterable[Rule]) -> None:
    """Raise ValueError with the message of the first rule that is broken."""
    for broken, message in rules:
        # The first one only: a wrong method breaks several rules at once.
        if broken:
            raise ValueError(message)


def lambda_rules(run: RunConfig, objective: ObjectiveConfig) -> Iterator[Rule]:
    """Yield the rules that keep topd and opd apart."""
    # Reports and tables name a run by its method, so the method must be what it does.
    weight = objective.lambda_traj
    yield (
        run.method == "opd" and weight > 0,
        (
            f"objective.lambda_traj={weight:g} with run.method=opd is topd; set"
            " run.method=topd, or lambda_traj=0"
        ),
    )
    yield (
        run.method == "topd" and weight == 0,
        "objective.lambda_traj=0 with run.method=topd is opd; set run.method=opd",
    )


def template_rules(prompts: PromptsConfig, teacher: TeacherConfig) -> Iterator[Rule]:
    """Yield the rule about what a template's variables may be called."""
    for field, variables in (
        ("prompts", prompts.chat_template_kwargs),
        ("teacher", teacher.chat_template_kwargs or {}),
    ):
        taken = sorted(_TEMPLATE_ARGUMENTS & variables.keys())
        yield (
            bool(taken),
            (
                f"{field}.chat_template_kwargs sets {', '.join(taken)}: that decides"
                " what is made of a prompt, and is not for the template; drop it"
            ),
        )


def teacher_rules(
    run: RunConfig, objective: ObjectiveConfig, teacher: TeacherConfig
) -> Iterator[Rule]:
    """Yield the rules about where the teacher comes from and what it sees."""
    is_student = teacher.source == "student"
    yield (
        is_student and teacher.model is not None,
        (
            "teacher.model with teacher.source=student: the teacher is learner.model;"
            " drop one"
        ),
    )
    yield (
        is_student and teacher.revision is not None,
        (
            f"teacher.revision={teacher.revision} with teacher.source=student: the"
            " teacher is learner.model; set learner.revision"
        ),
    )
    yield (
        not is_student and teacher.model is None,
        "teacher.model is missing; name its folder, or set teacher.source=student",
    )
    yield (
        is_student and objective.context == "plain",
        (
            "teacher.source=student with objective.context=plain: the student would be"
            " its own teacher with nothing more to go by; set"
            " objective.context=reference"
        ),
    )
    yield (
        is_student and teacher.template != "same",
        (
            f"teacher.template={teacher.template} with teacher.source=student: the"
            " teacher is the student, and has its template; drop it"
        ),
    )
    yield (
        teacher.chat_template_kwargs is not None
        and objective.context == "plain"
        and teacher.template != "own",
        (
            f"teacher.chat_template_kwargs={teacher.chat_template_kwargs} with"
            f" objective.context=plain and teacher.template={teacher.template}: the"
            " teacher reads the student's prompt; set teacher.template=own, or drop it"
        ),
    )
    yield (
        teacher.follow_every > 0 and not is_student,
        f"teacher.follow_every={teacher.follow_every} needs teacher.source=student",
    )
    yield (
        teacher.follow_every > 0
        and run.checkpoint_every % max(1, teacher.follow_every) != 0,
        (
            f"run.checkpoint_every={run.checkpoint_every} is no multiple of"
            f" teacher.follow_every={teacher.follow_every}: a resumed run could not"
            " rebuild its teacher; make it one"
        ),
    )


def trajectory_rules(
    objective: ObjectiveConfig, rollout: RolloutConfig
) -> Iterator[Rule]:
    """Yield the rules about whose responses are learned from."""
    trajectory = objective.trajectory
    is_given = trajectory == "given"
    is_rollout = trajectory == "rollout"
    yield (
        (trajectory == "rewrite") != objective.context.startswith("refine"),
        (
            f"objective.trajectory={trajectory} with"
            f" objective.context={objective.context}: refine and refine_reference are"
            " for rewrites, and only they"
        ),
    )
    yield (
        (objective.lambda_traj > 0 or objective.downweight != "none")
        and not is_rollout,
        (
            "objective.lambda_traj / downweight with"
            f" objective.trajectory={trajectory}: candidates are positions of the"
            " student's own rollouts; set trajectory=rollout"
        ),
    )
    yield (
        is_given and objective.context != "plain",
        (
            f"objective.trajectory=given with objective.context={objective.context}:"
            " given responses are scored under the prompt they answer; set"
            " context=plain"
        ),
    )
    yield (
        is_given and rollout.samples_per_prompt != 1,
        (
            f"rollout.samples_per_prompt={rollout.samples_per_prompt} with"
            " objective.trajectory=given: a prompt has the one response of the data;"
            " set it to 1"
        ),
    )
    yield (
        objective.kd_ratio < 1 and is_rollout,
        (
            f"objective.kd_ratio={objective.kd_ratio:g} with"
            " objective.trajectory=rollout: cross entropy on its own samples teaches"
            " the student nothing; set kd_ratio=1"
        ),
    )


def takeover_rules(
    run: RunConfig,
    objective: ObjectiveConfig,
    takeover: TakeoverConfig,
    divergence: DivergenceConfig,
) -> Iterator[Rule]:
    """Yield the rules about responses that the teacher takes over."""
    takes_over = objective.trajectory == "takeover"
    yield (
        takes_over != (run.method == "takeover"),
        (
            f"run.method={run.method} with objective.trajectory={objective.trajectory}:"
            " reports name a run by its method; set run.method=takeover with"
            " objective.trajectory=takeover, or neither"
        ),
    )
    yield (
        objective.mix and not takes_over,
        (
            f"objective.mix with objective.trajectory={objective.trajectory}: it is"
            " about whose token it is; set trajectory=takeover, or drop it"
        ),
    )
    yield (
        takes_over and objective.divergence != "reverse_kl",
        (
            f"objective.divergence={objective.divergence} with trajectory=takeover: the"
            " student's own tokens have reverse KL, the teacher's forward KL; set"
            " divergence=reverse_kl"
        ),
    )
    yield (
        takes_over and objective.forward_above_entropy is not None,
        (
            "objective.forward_above_entropy with trajectory=takeover: the fork decides"
            " where forward KL is added; drop it"
        ),
    )
    yield (
        takes_over and objective.kd_ratio < 1,
        (
            f"objective.kd_ratio={objective.kd_ratio:g} with trajectory=takeover: cross"
            " entropy on its own samples teaches the student nothing; set kd_ratio=1"
        ),
    )
    yield (
        takes_over
        and takeover.verdict in ("d_ot", "both")
        and divergence.rule == "low_loss_q75",
        (
            f"windows.divergence.rule=low_loss_q75 with takeover.verdict="
            f"{takeover.verdict}: a takeover probes unlikely tokens alone; set"
            " rule=quantile or absolute"
        ),
    )


def stride_rules(
    objective: ObjectiveConfig,
    takeover: TakeoverConfig,
    rollout: RolloutConfig,
    teacher: TeacherConfig,
) -> Iterator[Rule]:
    """Yield the rules about rollouts that are stopped at their fork."""
    stride = takeover.stride
    reads_ahead = stride is not None
    yield (
        reads_ahead and objective.trajectory != "takeover",
        (
            f"takeover.stride={stride} with objective.trajectory="
            f"{objective.trajectory}: only a rollout that the teacher takes over is"
            " stopped; set run.method=takeover, or drop it"
        ),
    )
    yield (
        reads_ahead and takeover.verdict not in ("confident", "surprise"),
        (
            f"takeover.stride={stride} with takeover.verdict={takeover.verdict}: it"
            " knows the fork when the rollout is whole; set verdict=confident or"
            " surprise, or drop stride"
        ),
    )
    yield (
        reads_ahead and takeover.keep != "all",
        (
            f"takeover.stride={stride} with takeover.keep={takeover.keep}: a rollout"
            " that is stopped has no answer to judge; set keep=all, or drop stride"
        ),
    )
    yield (
        reads_ahead and teacher.num_engines > rollout.num_engines,
        (
            f"takeover.stride={stride} with teacher.num_engines={teacher.num_engines}"
            f" and rollout.num_engines={rollout.num_engines}: a teacher follows the"
            " rollouts of whole engines, so some would be idle; have as many rollout"
            " engines as teachers, or drop stride"
        ),
    )


def signal_rules(
    objective: ObjectiveConfig, rollout: RolloutConfig, teacher: TeacherConfig
) -> Iterator[Rule]:
    """Yield the rules about what each signal of the teacher can be used for."""
    is_sampled = teacher.signal == "sampled"
    is_reverse = objective.divergence == "reverse_kl"
    is_rollout = objective.trajectory == "rollout"
    yield (
        is_sampled and not (is_rollout and is_reverse and objective.kd_ratio == 1),
        (
            "teacher.signal=sampled estimates the reverse KL of the student's own"
            " samples; set objective.trajectory=rollout and divergence=reverse_kl, or"
            " another signal"
        ),
    )
    yield (
        is_sampled and objective.token_clip is not None,
        (
            "objective.token_clip with teacher.signal=sampled: a sampled log ratio is"
            " no divergence to clip; drop it, or set another signal"
        ),
    )
    yield from (
        (is_sampled and value != whole, _biased_sampling(field, value, whole))
        for field, value, whole in (
            ("temperature", rollout.temperature, 1.0),
            ("top_p", rollout.top_p, 1.0),
            ("top_k", rollout.top_k, 0),
        )
    )
    yield (
        teacher.signal != "hidden" and objective.forward_above_entropy is not None,
        (
            f"objective.forward_above_entropy with teacher.signal={teacher.signal}: the"
            " teacher's entropy needs the full vocabulary; set teacher.signal=hidden"
        ),
    )
    yield (
        objective.forward_above_entropy is not None and not is_reverse,
        (
            "objective.forward_above_entropy with"
            f" objective.divergence={objective.divergence}: it adds forward to reverse"
            " KL; set divergence=reverse_kl"
        ),
    )


def _biased_sampling(field: str, value: float, whole: float) -> str:
    """Return why the gradient of `signal: sampled` needs samples of the student itself.

    The estimate weighs each sampled token by the student's probability at temperature 1
    over the whole vocabulary. Tokens drawn from a tempered or truncated distribution
    have other probabilities, so the mean over them is not the policy gradient of the
    reverse KL; at temperature 0 it is the mean of no distribution at all.
    """
    return (
        f"rollout.{field}={value:g} with teacher.signal=sampled: the policy gradient"
        " needs tokens drawn from the student's own distribution, and is biased on any"
        f" other; set rollout.{field}={whole:g}, or teacher.signal=hidden or topk"
    )


def weight_rules(
    objective: ObjectiveConfig,
    candidates: CandidatesConfig,
    probe: ProbeConfig,
    divergence: DivergenceConfig,
    learner: LearnerConfig,
) -> Iterator[Rule]:
    """Yield the rules about which tokens count more or less in the loss."""
    caps = objective.downweight != "none"
    selects = objective.select != "all"
    yield (
        selects and objective.trajectory != "rollout",
        (
            f"objective.select={objective.select} with"
            f" objective.trajectory={objective.trajectory}: the student's entropy is"
            " known on its own rollouts only"
        ),
    )
    yield (
        caps and divergence.rule != "quantile",
        (
            f"objective.downweight={objective.downweight} with"
            f" windows.divergence.rule={divergence.rule}: table 2 takes the bottom"
            " quantile; set rule=quantile"
        ),
    )
    yield (
        (caps or selects) and candidates.loss != "reverse_kl",
        (
            f"objective.downweight / select with candidates.loss={candidates.loss}:"
            " they weigh by the token loss that is descended; set"
            " candidates.loss=reverse_kl"
        ),
    )
    # The draw is over the rollouts that are packed together, and a rank packs its own
    # share alone: with several ranks the capped tokens would depend on the dealing.
    yield (
        objective.downweight == "matched_high_ot" and learner.num_ranks > 1,
        (
            "objective.downweight=matched_high_ot with"
            f" learner.num_ranks={learner.num_ranks}: the matched tokens are drawn from"
            " all rollouts of a chunk, and a rank holds a share of them; set"
            " num_ranks=1"
        ),
    )
    yield (
        probe.student == "resample" and caps and objective.lambda_traj == 0,
        (
            "probe.student=resample with objective.downweight alone: fresh windows are"
            " only worth their price where they are trained on; set"
            " probe.student=rollout"
        ),
    )


def staleness_rules(
    objective: ObjectiveConfig,
    rollout: RolloutConfig,
    teacher: TeacherConfig,
    probe: ProbeConfig,
) -> Iterator[Rule]:
    """Yield the rules about rollouts of older weights than those they train."""
    stale = rollout.max_staleness
    yield (
        stale > 0 and objective.trajectory == "given",
        (
            f"rollout.max_staleness={stale} with objective.trajectory=given: given"
            " responses are no policy's and cannot be stale; drop it"
        ),
    )
    yield (
        stale > 0 and teacher.follow_every > 0,
        (
            f"rollout.max_staleness={stale} with"
            f" teacher.follow_every={teacher.follow_every}: a step is scored before the"
            " one that moves the teacher ends; set one of them to 0"
        ),
    )
    yield (
        stale > 0 and probe.student == "resample",
        (
            f"rollout.max_staleness={stale} with probe.student=resample: when fresh"
            " windows are decoded, the engine may hold newer weights than those of the"
            " rollout; set one of them back"
        ),
    )


def idle_rules(
    objective: ObjectiveConfig,
    prompts: PromptsConfig,
    rollout: RolloutConfig,
    teacher: TeacherConfig,
    num_probe_workers: int,
    learner: LearnerConfig,
) -> Iterator[Rule]:
    """Yield the rules that give every actor a rollout in each step."""
    rollouts = prompts.per_step * rollout.samples_per_prompt
    seen = (
        f"prompts.per_step={prompts.per_step} x"
        f" rollout.samples_per_prompt={rollout.samples_per_prompt} ="
        f" {rollouts} rollouts a step"
    )
    is_given = objective.trajectory == "given"
    for field, count, idles in (
        # Engines of given responses only answer the problems of an evaluation.
        (
            "rollout.num_engines",
            0 if is_given else rollout.num_engines,
            "an engine would never decode",
        ),
        ("teacher.num_engines", teacher.num_engines, "a teacher would never score"),
        ("probe.num_workers", num_probe_workers, "a worker would never probe"),
        ("learner.num_ranks", learner.num_ranks, "a rank would train on nothing"),
    ):
        yield (
            rollouts < count,
            (
                f"{field}={count} with {seen}: {idles}; set {field} to at most"
                f" {rollouts}, or raise prompts.per_step"
            ),
        )
