"""Checks of one config on this machine: its fields, run root, models, GPUs, disk."""

import tempfile
from pathlib import Path

from topd_ray.actors.placement import ClusterNode, place
from topd_ray.commands.doctor.finding import Finding, not_looked_at
from topd_ray.commands.doctor.machine import check_disk, free_gib
from topd_ray.config import Config
from topd_ray.errors import UserError, first_line
from topd_ray.inputs.estimates import sizes_of
from topd_ray.inputs.run_inputs import check_inputs
from topd_ray.models.folder import find_model
from topd_ray.models.roles import find_student

_HUB_S = 5.0
_CHECKPOINT_BYTES = 12.0
"""A parameter and its two moments in float32."""


def check_config(config: Config) -> Finding:
    """Judge fields, models and data as `topd check` does."""
    try:
        notes = check_inputs(config)
    except UserError as error:
        return Finding(
            check="config",
            verdict="fails",
            seen=first_line(error),
            way_out="topd check CONFIG",
        )
    # Of a config for another machine `topd check` only notes it. The models have
    # their own rows.
    missing = [note for note in notes if ".path=" in note]
    if missing:
        return Finding(
            check="config",
            verdict="fails",
            seen="; ".join(missing),
            way_out="the data's path; `topd data openthoughts3` writes the paper's",
        )
    return Finding(check="config", verdict="ok", seen="its fields and its data fit")


def check_run_root(root: Path) -> Finding:
    """Write a file where run folders go; leaves nothing behind."""
    check = "run.root"
    folder = root.absolute()
    try:
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"topd doctor")
    except OSError as error:
        return Finding(
            check=check,
            verdict="fails",
            seen=f"{folder}: {error.strerror}",
            way_out="a folder that you may write to, on storage that every node sees",
        )
    seen = (
        f"{root} can be written" if folder == root.absolute() else f"{folder}: writable"
    )
    return Finding(check=check, verdict="ok", seen=seen)


def check_checkpoint_room(config: Config) -> Finding:
    """Compare the run root's disk with the checkpoints that the run keeps there."""
    check = "disk of run.root"
    sizes = sizes_of(find_student(config), config.learner.size_b)
    if sizes is None:
        return not_looked_at(check, "the student's size is unknown; set learner.size_b")
    folder = Path(config.run.root).absolute()
    while not folder.exists():
        folder = folder.parent
    # One more is written before the oldest goes.
    kept = config.run.keep_checkpoints + 1
    needed = kept * sizes.parameters * _CHECKPOINT_BYTES / 2**30
    return check_disk(check, free_gib(folder), needed, f"{kept} checkpoints of")


def check_model(field: str, name: str, revision: str | None) -> Finding:
    """Find a model on this machine, or ask the hub for it without a download."""
    try:
        folder = find_model(name, revision)
    except UserError as error:
        return Finding(check=field, verdict="fails", seen=first_line(error))
    if folder is not None:
        return Finding(check=field, verdict="ok", seen=f"{name} is on this machine")
    complaint = _asked_hub(name, revision)
    if complaint is None:
        return Finding(
            check=field, verdict="ok", seen=f"{name} is on the hub; a run fetches it"
        )
    return Finding(
        check=field,
        verdict="fails",
        seen=f"{name}: no folder, not in the hub's cache, and {complaint}",
        way_out="the path of a folder, HF_HOME with the model, or `hf auth login`",
    )


def _asked_hub(name: str, revision: str | None) -> str | None:
    """Return why the hub does not give a model; None where it does."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        HfApi().model_info(name, revision=revision, timeout=_HUB_S)
    except HFValidationError:
        return "it is no hub name (owner/model)"
    except RepositoryNotFoundError:
        return "the hub knows no such model"
    except Exception as error:  # the client's own errors, httpx's, and offline mode
        return f"the hub does not answer ({type(error).__name__})"
    return None


def check_placement(config: Config, num_gpus: int) -> Finding:
    """Place the config's actors on the GPUs of this machine, and start none."""
    check = "placement"
    if config.cluster.address is not None:
        why = f"{num_gpus} GPUs here; cluster.address has other nodes"
        return not_looked_at(check, why)
    machine = ClusterNode(name="this machine", gpus=num_gpus)
    try:
        placement = place(config, [machine], where="this machine")
    except UserError as error:
        return Finding(
            check=check,
            verdict="fails",
            seen=first_line(error),
            way_out="another machine, or a config of configs/ for fewer GPUs",
        )
    used = {gpu for actor in placement.actors for gpu in actor.gpus}
    seen = f"{len(placement.actors)} actors on {len(used)} of {num_gpus} GPUs"
    return Finding(check=check, verdict="ok", seen=seen)
