"""CandidateSet -> ProbeSet. Where would each model go from here, and how far apart is that?"""

from topd_ray.probe.actor import ProbeActor

__all__ = ["ProbeActor"]
