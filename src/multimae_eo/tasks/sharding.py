"""Models too large for one device: FSDP2, each device keeps a part of the weights, gradients and optimizer state.

Source: Zhao et al., "PyTorch FSDP", VLDB 2023; docs of torch.distributed.fsdp.fully_shard.
"""

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from multimae_eo.model import MultiMAE


def strategy_for(name: str) -> Strategy | str:
    """Lightning's strategy: "ddp" copies the model to each device, where there are several, "fsdp" cuts it up."""
    return ModelParallelStrategy(save_distributed_checkpoint=False) if name == "fsdp" else "auto"


def shard(model: MultiMAE, others: nn.Module | None, *, compiled: bool) -> None:
    """Cut up the weights in place: those of each block of the encoder, all other ones, and those of a second module.

    Of a block, all weights are gathered just before it computes; with compiled, blocks are compiled one by one, as a
    graph cannot reach over what gathers.
    """
    mesh = init_device_mesh(next(model.parameters()).device.type, (torch.distributed.get_world_size(),))
    for block in model.encoder.blocks:
        if compiled:
            block.compile(fullgraph=True, dynamic=False)
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if others is not None:
        fully_shard(others, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether a model is cut up."""
    return isinstance(model, FSDPModule)


def synchronise(model: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass averages gradients over devices."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)


def together(value: Tensor) -> Tensor:
    """A number of which every device may hold a part, as every device needs it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole(model: MultiMAE) -> MultiMAE:
    """The model itself, or where it is cut up, a copy of it that is not. Every process must call it."""
    if not is_sharded(model):
        return model
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    device = next(model.parameters()).device
    if torch.distributed.get_rank():  # the first process alone is given the weights, and uses the copy
        return model
    copy = MultiMAE(model.config).to(device)
    copy.load_state_dict(state)
    return copy.train(model.training)
