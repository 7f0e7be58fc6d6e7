"""`sr3_jax.main`, with a note of every training batch that is taken from the data pipeline.

python tests/observed_main.py FOLDER [flags of sr3_jax.main]

FOLDER/PROCESS-CALL.txt gets a line for each batch: the numbers of this process's images.
"""

import itertools
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from sr3_jax import main  # noqa: E402
from sr3_jax.data import pipeline  # noqa: E402

folder = pathlib.Path(sys.argv.pop(1))
calls = itertools.count()
training_batches = pipeline.Pipeline.training_batches


def observed(self, start_step=0):
    with (folder / f"{os.getpid()}-{next(calls)}.txt").open("w", buffering=1) as file:
        for batch in training_batches(self, start_step):
            file.write(" ".join(map(str, batch["index"])) + "\n")
            yield batch


if __name__ == "__main__":
    pipeline.Pipeline.training_batches = observed
    main.run()
