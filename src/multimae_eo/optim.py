"""Parameter groups and the learning-rate schedule; the schedule is pure in the step, so it needs no state to resume."""

import math
from typing import Any

from torch import nn

# Parameters without weight decay, besides everything of one dimension (docs/model.md, section 7).
_TOKENS = ("global_tokens", "mask_token", "modality_embeddings")


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for AdamW: no decay on biases, norms, embeddings, mask and global tokens."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        spared = parameter.ndim < 2 or name.rsplit(".", 1)[-1] in _TOKENS
        (free if spared else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def learning_rate(step: int, *, peak: float, steps: int, warmup_steps: int, warmup_lr: float) -> float:
    """Linear from warmup_lr to peak over warmup_steps, then a cosine to 0 at `steps`."""
    if step < warmup_steps:
        return warmup_lr + (peak - warmup_lr) * step / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * peak * (1 + math.cos(math.pi * min(1.0, done)))
