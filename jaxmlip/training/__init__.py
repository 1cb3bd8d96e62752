"""Losses, the training step, and the loop around it."""

import typing

from jaxmlip.system import doors

if typing.TYPE_CHECKING:
    from jaxmlip.system.parallel import make_mesh as make_mesh
    from jaxmlip.training.config import DataConfig as DataConfig
    from jaxmlip.training.config import ModelConfig as ModelConfig
    from jaxmlip.training.config import TrainConfig as TrainConfig
    from jaxmlip.training.config import finetune_config as finetune_config
    from jaxmlip.training.config import read_config as read_config
    from jaxmlip.training.evaluate import compare as compare
    from jaxmlip.training.loop import fit as fit
    from jaxmlip.training.losses import LossConfig as LossConfig
    from jaxmlip.training.optimizer import OptimizerConfig as OptimizerConfig
    from jaxmlip.training.run import export as export
    from jaxmlip.training.run import run_training as run_training
    from jaxmlip.training.step import init_state as init_state
    from jaxmlip.training.step import make_train_step as make_train_step
    from jaxmlip.training.step import potential_of as potential_of

__getattr__, __dir__ = doors.door(
    __name__,
    {
        "jaxmlip.system.parallel": "make_mesh",
        "jaxmlip.training.config": "DataConfig ModelConfig TrainConfig finetune_config read_config",
        "jaxmlip.training.evaluate": "compare",
        "jaxmlip.training.loop": "fit",
        "jaxmlip.training.losses": "LossConfig",
        "jaxmlip.training.optimizer": "OptimizerConfig",
        "jaxmlip.training.run": "export run_training",
        "jaxmlip.training.step": "init_state make_train_step potential_of",
    },
)
