"""What a run is asked to do: `schema` holds the settings, `load` builds them."""

from curate.config.load import config_from_tree, config_to_tree, config_to_yaml, load_config
from curate.config.schema import BladeConfig, Config, ModelConfig, TrainConfig

__all__ = [
    "BladeConfig",
    "Config",
    "ModelConfig",
    "TrainConfig",
    "config_from_tree",
    "config_to_tree",
    "config_to_yaml",
    "load_config",
]
