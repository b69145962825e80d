"""One rank of a launched group: loads a folder in parts and, on rank 0, writes the logits of some prompts to a file.

torchrun starts it: python -m torch.distributed.run --nproc-per-node N tests/models/tp_logits.py FOLDER OUT IDS
"""

import json
import os
import sys
from pathlib import Path

import torch

from chatkit.models import parallel
from chatkit.models.chat_load import LoadOptions, load_model
from chatkit.models.chat_runner import Runner


def main() -> None:
    torch.set_num_threads(1)
    place = parallel.place_of(os.environ)
    group = parallel.Group(place, print)
    runner = Runner(load_model(Path(sys.argv[1]), LoadOptions(dtype="float32", tensor_parallel=place.ranks)))
    if place.rank:
        group.follow(runner)
        return
    runner.announce = group.announce
    runner.check()
    runner.resize(1, 256)
    logits = []
    for ids in json.loads(sys.argv[3]):
        runner.begin(None, 0)
        logits.append(runner.fill(ids[:-1]))
        logits.append(runner.step([ids[-1]])[0])
        runner.end(0, 1, None, False)
    torch.save(torch.stack(logits), sys.argv[2])
    group.leave()


main()
sys.stdout.flush()
os._exit(0)  # as the engine's ranks do: the meeting thread may be inside a collective when its process ends
