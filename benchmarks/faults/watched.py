"""The command line, with a list of what each training step learnt from: `python watched.py pretrain ...`.

Before each step a row is appended to the file that SEEN names: step, process, rows of the data set.
"""

import os
import sys

from multimae_eo.cli import main
from multimae_eo.tasks.examples import Examples
from multimae_eo.tasks.pretrain import PretrainTask

_step = PretrainTask.training_step


def training_step(self: PretrainTask, examples: Examples, index: int) -> None:
    row = f"{self.global_step + 1},{self.trainer.global_rank},{' '.join(map(str, examples.rows.tolist()))}\n"
    with open(os.environ["SEEN"], "a") as file:
        file.write(row)
    _step(self, examples, index)


if __name__ == "__main__":
    PretrainTask.training_step = training_step
    main(sys.argv[1:])
