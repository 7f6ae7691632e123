"""Trajectory-aware on-policy distillation of language models, as a Ray-distributed
system.
"""

__version__ = "0.1.0"
