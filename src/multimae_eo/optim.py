"""Parameter groups and the learning-rate schedule; the schedule is pure in the step, so it needs no state to resume."""

import math
import re
from typing import Any

from torch import nn

# Parameters without weight decay, besides everything of one dimension (docs/model.md, section 7).
_TOKENS = ("global_tokens", "mask_token", "modality_embeddings", "query", "absent")


def parameter_groups(
    module: nn.Module, weight_decay: float, *, layer_decay: float = 1.0, depth: int = 0
) -> list[dict[str, Any]]:
    """Groups for AdamW: no decay on biases, norms, embeddings, mask and global tokens.

    layer_decay: the learning rate of a layer is this factor smaller than that of the layer above, down from the head
    through the `depth` encoder blocks to the tokenizers (Bao et al., BEiT, 2022); "lr_scale" of a group says how much.
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        spared = parameter.ndim < 2 or name.rsplit(".", 1)[-1] in _TOKENS
        below = _layers_below_the_head(name, depth) if layer_decay != 1 else 0
        groups.setdefault((below, spared), []).append(parameter)
    return [
        {"params": members, "weight_decay": 0.0 if spared else weight_decay, "lr_scale": layer_decay**below}
        for (below, spared), members in sorted(groups.items())
    ]


def _layers_below_the_head(name: str, depth: int) -> int:
    """0 for the head, 1 for the last block of the encoder, depth + 1 for what feeds the first one."""
    if not name.startswith("encoder."):
        return 0
    block = re.match(r"encoder\.blocks\.(\d+)\.", name)
    return depth - int(block.group(1)) if block else depth + 1


def learning_rate(step: int, *, peak: float, steps: int, warmup_steps: int, warmup_lr: float) -> float:
    """Linear from warmup_lr to peak over warmup_steps, then a cosine to 0 at `steps`."""
    if step < warmup_steps:
        return warmup_lr + (peak - warmup_lr) * step / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * peak * (1 + math.cos(math.pi * min(1.0, done)))
