"""CandidateSet -> ProbeSet. Where would each model go from here, and how far apart is
that?
"""

from topd_ray.probe.actor import ProbeActor
from topd_ray.probe.continuations import Continued, continue_from

__all__ = ["Continued", "ProbeActor", "continue_from"]
