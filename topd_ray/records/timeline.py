"""What each actor did when: a trace to look at, busy shares, and what idle actors
waited for.

Every call of an actor leaves one `Work`, timed where it was done. Three things are made
of them: a Chrome trace (ui.perfetto.dev opens it), a file of the same events that grows
while a run goes on, and a step's shares of time by `busy_and_waits`, where every idle
second has one name.
"""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

STEP = "step"
"""Idle because nothing of the step was there to wait for: the optimizer and the
refit.
"""
QUEUE = "queue"
"""Idle although the next chunk was under way and no actor worked on it."""

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Work:
    """One call of an actor, or one chunk of a streaming call."""

    actor: str
    """`kind[index]`, as the driver names it."""
    what: str
    """Name of the method: the stage that the chunk goes through."""
    step: int
    chunk: int | None
    """Place in the learner's queue, unique within the step; None where the work is of
    no chunk.
    """
    began_s: float
    """Seconds of the monotonic clock of the driver."""
    ended_s: float
    num_tokens: int = 0

    @property
    def kind(self) -> str:
        """`teacher` of `teacher[3]`."""
        return _kind(self.actor)


def busy_and_waits(
    works: Iterable[Work],
    *,
    began_s: float,
    ended_s: float,
    actors: Collection[str] = (),
) -> dict[str, float]:
    """Return how the actors of each kind spent the window.

    Keys are `busy/<kind>_frac` and `wait/<kind>_on_<stage>_frac`; values are shares of
    wall time x actors of the kind.

    For each kind they add up to 1. A gap before the work on a chunk is charged to the
    stage that this chunk was going through meanwhile; before the chunk was begun, to
    what its first actor was busy with; else to `queue` once it was begun and to `step`
    before. All other gaps are charged to `step`. Works may reach beyond the window
    (with staleness they do); what lies outside is not counted. `actors` names those
    that may have had no work at all. Raises ValueError where the window is empty.
    """
    if ended_s <= began_s:
        raise ValueError(
            f"window of {ended_s - began_s:g} s: ended_s must come after began_s"
        )
    books = _Books(works)
    names = sorted({*actors, *books.of_actor})
    num_actors = Counter(_kind(actor) for actor in names)
    shares: dict[str, float] = defaultdict(float)
    for actor in names:
        kind = _kind(actor)
        shares[f"busy/{kind}_frac"] += 0.0  # named even where it never worked
        for reason, first_s, last_s in books.day(actor, began_s, ended_s):
            label = f"wait/{kind}_on_{reason}_frac" if reason else f"busy/{kind}_frac"
            shares[label] += (last_s - first_s) / (ended_s - began_s) / num_actors[kind]
    return dict(shares)


def _kind(actor: str) -> str:
    return actor.partition("[")[0]


Interval = tuple[float, float]
Reason = tuple[str, float, float]


class _Books:
    """Works by actor and by chunk, each in order of beginning."""

    def __init__(self, works: Iterable[Work]) -> None:
        self.of_actor: dict[str, list[Work]] = defaultdict(list)
        self._of_chunk: dict[tuple[int, int], list[Work]] = defaultdict(list)
        for work in sorted(works, key=lambda item: (item.began_s, item.ended_s)):
            self.of_actor[work.actor].append(work)
            if work.chunk is not None:
                self._of_chunk[work.step, work.chunk].append(work)

    def day(self, actor: str, began_s: float, ended_s: float) -> Iterator[Reason]:
        """Cut the window into spans, each with the reason of the wait.

        The reason is an empty string where the actor is busy.
        """
        now = began_s
        for work in self.of_actor.get(actor, ()):
            first = max(work.began_s, now)
            last = min(work.ended_s, ended_s)
            if (
                first >= ended_s
            ):  # begun in the next step; it still says what the gap was for
                yield from self._reasons(work, (now, ended_s))
                return
            if first > now:
                yield from self._reasons(work, (now, first))
                now = first
            if last > now:
                yield "", now, last
                now = last
        if now < ended_s:
            yield STEP, now, ended_s

    def _reasons(self, work: Work, gap: Interval) -> Iterator[Reason]:
        """Cut the gap before `work` where its chunk went from one stage to the next."""
        same = [] if work.chunk is None else self._of_chunk[work.step, work.chunk]
        earlier = [
            other
            for other in same
            if other.began_s < work.began_s and other.what != work.what
        ]
        if not earlier:
            yield STEP, *gap
            return
        start_s = earlier[0].began_s
        before = [
            other
            for other in self.of_actor[earlier[0].actor]
            if other.began_s < start_s
        ]
        yield from _covered(before, (gap[0], min(gap[1], start_s)), otherwise=STEP)
        yield from _covered(earlier, (max(gap[0], start_s), gap[1]), otherwise=QUEUE)


def _covered(
    works: Sequence[Work], gap: Interval, *, otherwise: str
) -> Iterator[Reason]:
    """Cut `gap` at the works' edges, and name each piece after the work there that
    began last.
    """
    if gap[1] <= gap[0]:
        return
    inside = [work for work in works if work.ended_s > gap[0] and work.began_s < gap[1]]
    edges = {edge for work in inside for edge in (work.began_s, work.ended_s)}
    cuts = sorted({*gap, *(edge for edge in edges if gap[0] < edge < gap[1])})
    for first, last in pairwise(cuts):
        there = [
            work for work in inside if work.began_s <= first and work.ended_s >= last
        ]
        name = max(there, key=lambda work: work.began_s).what if there else otherwise
        yield name, first, last


class _Rows:
    """The row of every actor, two where its calls overlap; a row once given stays."""

    def __init__(self, process: int, epoch_s: float) -> None:
        self._process = process
        self._epoch_s = epoch_s
        self._rows: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._count = 0

    def events(self, works: Iterable[Work]) -> Iterator[Event]:
        """Return an event a work, and a name for each row before its first."""
        for work in sorted(works, key=lambda work: work.began_s):
            rows = self._rows[work.actor]
            free = next(
                (i for i, (_, end_s) in enumerate(rows) if end_s <= work.began_s), None
            )
            if free is None:
                free = len(rows)
                self._count += 1
                rows.append((self._count, work.ended_s))
                yield from self._named(work.actor + "'" * free)
            row = rows[free][0]
            rows[free] = row, work.ended_s
            yield self._event(work, row)

    def _named(self, name: str) -> Iterator[Event]:
        at = {"ph": "M", "pid": self._process, "tid": self._count}
        yield {"name": "thread_name", **at, "args": {"name": name}}
        yield {"name": "thread_sort_index", **at, "args": {"sort_index": self._count}}

    def _event(self, work: Work, row: int) -> Event:
        return {
            "name": work.what if work.chunk is None else f"{work.what} {work.chunk}",
            "cat": work.kind,
            "ph": "X",
            "ts": round((work.began_s + self._epoch_s) * 1e6),
            "dur": max(1, round((work.ended_s - work.began_s) * 1e6)),
            "pid": self._process,
            "tid": row,
            "args": {
                "actor": work.actor,
                "what": work.what,
                "step": work.step,
                "chunk": work.chunk,
                "tokens": work.num_tokens,
            },
        }


def read_trace(path: Path) -> list[Work]:
    """Return the works of all sessions of a trace file, in epoch seconds."""
    return [
        Work(
            actor=event["args"]["actor"],
            what=event["args"]["what"],
            step=event["args"]["step"],
            chunk=event["args"]["chunk"],
            began_s=event["ts"] / 1e6,
            ended_s=(event["ts"] + event["dur"]) / 1e6,
            num_tokens=event["args"]["tokens"],
        )
        for event in _whole_events(path)
        if event["ph"] == "X"
    ]


class TraceWriter:
    """A trace file that grows with the run.

    An event a line. Once closed it is valid JSON; after a crash it lacks the last
    bracket, which Chrome's array format allows. A file that is there is gone on with: a
    resumed session is another process in it.
    """

    def __init__(self, path: Path, epoch_s: float | None = None) -> None:
        """Open the file; `epoch_s` is the epoch at monotonic time 0, by default this
        machine's.

        It is taken once, so that a wall clock that is set moves nothing in the trace.
        """
        # Read and written anew, because the closing bracket, or an event that a crash
        # cut short, must go before more can follow.
        kept = _whole_events(path)
        last_process = max((event["pid"] for event in kept), default=0)
        if epoch_s is None:
            epoch_s = time.time() - time.monotonic()
        self._rows = _Rows(1 + last_process, epoch_s)
        self._file: TextIO = path.open("w", encoding="utf-8")
        self._file.write("[")
        self._separator = "\n"
        self._write(kept)

    def add(self, works: Iterable[Work]) -> None:
        """Append the works of a step."""
        self._write(self._rows.events(works))

    def close(self) -> None:
        """Close the array."""
        self._file.write("\n]\n")
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, events: Iterable[Event]) -> None:
        for event in events:
            self._file.write(self._separator + json.dumps(event))
            self._separator = ",\n"
        self._file.flush()


def _whole_events(path: Path) -> list[Event]:
    """Return the events of a trace that may have been cut anywhere."""
    if not path.is_file():
        return []
    events: list[Event] = []
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        try:
            events.append(json.loads(line.rstrip().removesuffix(",")))
        except ValueError:  # the closing bracket, or a line that a crash cut short
            break
    return events
