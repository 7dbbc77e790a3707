"""The task of a configuration."""

from multimae_eo.config import TaskConfig
from multimae_eo.errors import ConfigError
from multimae_eo.tasks.classify import Classification, MultiLabel
from multimae_eo.tasks.regress import Regression
from multimae_eo.tasks.segment import Segmentation
from multimae_eo.tasks.task import Task


def task_for(config: TaskConfig, *, label_smoothing: float = 0.0, dice: float = 0.0) -> Task:
    """Losses and metrics of a task; raises ConfigError for a part of the loss that the task does not have."""
    if dice and config.task != "segmentation":
        raise ConfigError(f"optim.dice is {dice}, but only a segmentation has a Dice loss, not a {config.task}; set 0.")
    if label_smoothing and config.task == "regression":
        raise ConfigError(f"optim.label_smoothing is {label_smoothing}, but a regression has no classes; set 0.")
    number = config.num_outputs
    if config.task == "classification":
        return Classification(number, label_smoothing=label_smoothing)
    if config.task == "multilabel":
        return MultiLabel(number, label_smoothing=label_smoothing)
    if config.task == "segmentation":
        return Segmentation(number, label_smoothing=label_smoothing, dice=dice)
    return Regression(std=config.std)
