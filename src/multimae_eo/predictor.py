"""A fine-tuned model: the encoder and a head, from any subset of modalities to labels."""

import torch
from torch import Tensor, nn

from multimae_eo.config import ModelConfig, TaskConfig
from multimae_eo.encoder import Encoder
from multimae_eo.errors import BatchError, UnknownNameError
from multimae_eo.heads import build_head
from multimae_eo.raster import Batch, pad
from multimae_eo.shapes import Float


class Predictor(nn.Module):
    """Encoder and head of a task.

    `model(batch)` takes rasters in physical units, any non-empty subset of the inputs, each of any size and validity,
    and gives scores per class (before softmax or sigmoid), or values in the labels' unit. Raises UnknownNameError for a
    task with an input that the model does not have.
    """

    def __init__(self, config: ModelConfig, task: TaskConfig):
        super().__init__()
        for name in task.inputs:
            if name not in config.input_modalities:
                raise UnknownNameError("input of the task", name, config.input_modalities)
        self.config, self.task = config, task
        self.encoder = Encoder(config)
        self.head = build_head(config, task)

    def forward(self, batch: Batch) -> Float[Tensor, "b k"] | Float[Tensor, "b k h w"]:
        """{modality: Raster [b, c, h, w]} -> [b, outputs] or [b, outputs, h, w] on the 10 m frame.

        Sizes that the patch does not divide are padded right and below with invalid pixels, and cropped back.
        Modalities that the task does not name are ignored. Raises BatchError where none is left, and
        SizeError where rasters are not of one size on the 10 m frame.
        """
        batch = {name: raster for name, raster in batch.items() if name in self.task.inputs}
        if not batch:
            raise BatchError(f"no input in the batch; expected any of {', '.join(self.task.inputs)}.")
        strides = {name: self.config.modalities[name].stride for name in batch}
        frames = [[edge * strides[name] for edge in r.values.shape[-2:]] for name, r in batch.items()]
        height, width = (min(edges) for edges in zip(*frames, strict=True))
        out = self.head(self.encoder.see(pad(batch, strides=strides, multiple=self.config.patch_size)))
        if self.task.task == "regression":
            out = out.float() * self.task.std + self.task.mean  # a large mean needs more digits than autocast has
        return out[..., :height, :width] if self.task.dense else out

    @torch.no_grad()
    def predict(self, batch: Batch) -> Tensor:
        """Class indices [b] or [b, h, w]; probabilities of labels [b, k]; or values [b, h, w] in the labels' unit."""
        out = self(batch)
        if self.task.task == "multilabel":
            return out.sigmoid()
        return out[:, 0] if self.task.task == "regression" else out.argmax(dim=1)
