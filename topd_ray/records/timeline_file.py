"""What every actor did in a step, as Parquet with the columns of `SCHEMA`."""

from collections.abc import Sequence

import pyarrow as pa

from topd_ray.records.timeline import Work

SCHEMA = pa.schema(
    [
        ("actor", pa.string()),
        ("stage", pa.string()),
        ("call", pa.string()),
        ("chunk", pa.int32()),
        ("began_s", pa.float64()),
        ("ended_s", pa.float64()),
        ("num_tokens", pa.int64()),
    ]
)
"""One row a call, or a chunk of a streaming call, in order of beginning.

`actor` is e.g. `teacher[0]`, `stage` its kind, `call` the method. `chunk` is the place
in the learner's queue of the step; null where the call is of no chunk. Seconds count
from the end of the step before; a call of a step that was begun ahead has a negative
`began_s`. `num_tokens` is null where the call handles none.
"""


def timeline_table(works: Sequence[Work], *, began_s: float) -> pa.Table:
    """Return the table of a step that began at `began_s` of the works' clock."""
    return pa.Table.from_pylist(
        [
            {
                "actor": work.actor,
                "stage": work.kind,
                "call": work.what,
                "chunk": work.chunk,
                "began_s": work.began_s - began_s,
                "ended_s": work.ended_s - began_s,
                "num_tokens": work.num_tokens or None,
            }
            for work in sorted(works, key=lambda work: (work.began_s, work.ended_s))
        ],
        schema=SCHEMA,
    )


__all__ = ["SCHEMA", "timeline_table"]
