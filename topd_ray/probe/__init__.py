"""CandidateSet -> ProbeSet. Continue each prefix with both models and compare.

`continue_from` decodes the teacher's continuations on a generation engine; `ProbeActor`
solves the transport between them and the student's.
"""

from topd_ray.probe.actor import ProbeActor
from topd_ray.probe.continuations import Continuations, continue_from

__all__ = ["Continuations", "ProbeActor", "continue_from"]
