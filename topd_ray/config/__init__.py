"""The schema of a run. Loads on a laptop: neither torch nor ray is imported here."""

from topd_ray.config.base import Column, EngineConfig
from topd_ray.config.load import dump_config, load_config, parse_config
from topd_ray.config.objective import METHODS, Context, ObjectiveConfig
from topd_ray.config.operation import (
    ClusterConfig,
    EvaluationConfig,
    HealthConfig,
    RunConfig,
)
from topd_ray.config.records import RecordsConfig, Tracker
from topd_ray.config.schema import Config
from topd_ray.config.stages import (
    CandidatesConfig,
    DivergenceConfig,
    LearnerConfig,
    LoraConfig,
    ProbeConfig,
    PromptsConfig,
    RewriteConfig,
    RolloutConfig,
    TakeoverConfig,
    TeacherConfig,
    WindowsConfig,
)
from topd_ray.config.weights import Transport, WeightsConfig

__all__ = [
    "METHODS",
    "CandidatesConfig",
    "ClusterConfig",
    "Column",
    "Config",
    "Context",
    "DivergenceConfig",
    "EngineConfig",
    "EvaluationConfig",
    "HealthConfig",
    "LearnerConfig",
    "LoraConfig",
    "ObjectiveConfig",
    "ProbeConfig",
    "PromptsConfig",
    "RecordsConfig",
    "RewriteConfig",
    "RolloutConfig",
    "RunConfig",
    "TakeoverConfig",
    "TeacherConfig",
    "Tracker",
    "Transport",
    "WeightsConfig",
    "WindowsConfig",
    "dump_config",
    "load_config",
    "parse_config",
]
