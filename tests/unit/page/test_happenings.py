"""Events in words."""

import re
from pathlib import Path

import pytest

import topd_ray
from topd_ray.page.happenings import happenings


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (
            {"event": "step_skipped", "step": 3, "complaints": ["a", "b"], "dump": "d"},
            "Step 3 was skipped: a; b. `topd replay` repeats it from dumps/d.",
        ),
        (
            {"event": "replaced", "actor": "prober[0]", "error": "killed."},
            "prober[0] was replaced: killed.",
        ),
        ({"event": "went_back", "step": 2}, "The run went back to step 2: no reason"),
        ({"event": "failed", "step": 9, "error": "no memory"}, "Failed after step 9:"),
        (
            {"event": "config_changed", "field": "run.steps", "old": 4, "new": 8},
            "run.steps changed from 4 to 8.",
        ),
        ({"event": "of_another_version"}, "Of another version."),
    ],
)
def test_an_event_is_a_sentence(event: dict[str, object], text: str) -> None:
    (found,) = happenings([event], {})
    assert found["text"].startswith(text)


def test_every_event_of_a_run_has_words_or_a_chart() -> None:
    written = re.compile(r"event\(\s*\"([a-z_]+)\"")
    kinds: set[str] = set()
    for file in Path(topd_ray.__file__).parent.rglob("*.py"):
        kinds |= set(written.findall(file.read_text(encoding="utf-8")))
    assert {"tracker_lost", "replaced", "failed"} <= kinds
    told = {kind: happenings([{"event": kind}], {}) for kind in kinds}
    bare = {kind: f"{kind.replace('_', ' ').capitalize()}." for kind in kinds}
    assert [
        kind for kind in kinds if told[kind] and told[kind][0]["text"] == bare[kind]
    ] == []


def test_what_the_charts_show_is_not_told() -> None:
    events = [{"event": "checkpoint", "step": 2}, {"event": "evaluated", "step": 2}]
    assert happenings(events, {}) == []


def test_dropped_prompts_and_rollouts_are_counted_by_reason() -> None:
    events = [{"event": "prompt_dropped", "reason": "too_long"}] * 3
    found = happenings(events, {"num_dropped_rollouts": {"rewrite too long": 1}})
    assert [one["text"] for one in found] == [
        "3 prompts dropped (too long); raise prompts.max_tokens or check the data.",
        "1 rollout dropped: rewrite too long.",
    ]
