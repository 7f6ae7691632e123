"""What was dropped, skipped, replaced, and why: events.jsonl in words."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from topd_ray.prompts.tokenize import WAYS_OUT

Weight = Literal["note", "warning", "failure"]
Happening = dict[str, str]
"""`weight`, `text` and, where it is known, `when`."""

_DROPPED = "prompt_dropped"


def happenings(
    events: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> list[Happening]:
    """Return a sentence for everything worth knowing, in the order of the run."""
    found = _dropped_prompts(events)
    for event in events:
        sentence = _sentence(event)
        if sentence is not None:
            weight, text = sentence
            found.append(
                {"weight": weight, "text": text, "when": str(event.get("at", ""))}
            )
    for reason, number in dict(summary.get("num_dropped_rollouts") or {}).items():
        text = f"{_count(number, 'rollout')} dropped: {reason}."
        found.append({"weight": "warning", "text": text})
    return found


def _dropped_prompts(events: Sequence[Mapping[str, Any]]) -> list[Happening]:
    reasons = Counter(
        str(e.get("reason")) for e in events if e.get("event") == _DROPPED
    )
    ways: Mapping[str, str] = {str(key): way for key, way in WAYS_OUT.items()}
    return [
        {
            "weight": "warning",
            "text": (
                f"{_count(number, 'prompt')} dropped ({reason.replace('_', ' ')})"
                + (f"; {ways[reason]}." if reason in ways else ".")
            ),
        }
        for reason, number in reasons.items()
    ]


def _sentence(event: Mapping[str, Any]) -> tuple[Weight, str] | None:
    """Return weight and text of an event; None for what the charts show anyway."""
    kind = event.get("event")
    step = event.get("step")
    if kind in ("checkpoint", "evaluated", "evaluated_before", _DROPPED):
        return None
    if kind == "step_skipped":
        complaints = event.get("complaints") or ["its update could not be trusted"]
        dump = event.get("dump")
        again = f" `topd replay` repeats it from dumps/{dump}." if dump else ""
        return "warning", f"Step {step} was skipped: {'; '.join(complaints)}.{again}"
    if kind == "went_back":
        return "warning", f"The run went back to step {step}: {_reason(event)}"
    if kind == "replaced":
        return "warning", f"{event.get('actor')} was replaced: {_reason(event)}"
    if kind == "transfer_failed":
        version = event.get("policy_version")
        return "warning", f"Weights {version} went through the object store:" + (
            f" {_ended(event.get('reason'))}"
        )
    if kind == "tracker_lost":
        return "warning", f"{event.get('tracker')} was lost: {_reason(event)}"
    if kind == "truncated":
        return "warning", f"Step {step}: {_ended(event.get('notice'))}"
    if kind == "resumed":
        return "note", f"Resumed after step {step} from {event.get('checkpoint')}."
    if kind == "config_changed":
        name, old, new = (event.get(key) for key in ("field", "old", "new"))
        return "note", f"{name or 'A field'} changed from {old} to {new}."
    if kind == "input_accepted":
        return "note", f"{event.get('name')} is another file than before."
    if kind == "failed":
        return "failure", f"Failed after step {step}: {_reason(event)}"
    if kind == "report_failed":
        return "warning", f"No report was written: {_ended(event.get('reason'))}"
    if kind == "stopping":
        return "note", f"Asked to stop after step {step}."
    if kind == "stopped":
        return "note", f"Stopped after step {step}; {event.get('checkpoint')} is kept."
    return "note", f"{str(kind).replace('_', ' ').capitalize()}."


def _reason(event: Mapping[str, Any]) -> str:
    return _ended(event.get("error"))


def _ended(text: object) -> str:
    """Return a sentence with one full stop."""
    return f"{str(text or 'no reason is recorded').rstrip('. ')}."


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


__all__ = ["Happening", "happenings"]
