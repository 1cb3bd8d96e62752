"""The loop of a peer's worker process: it reads one request a line and answers one line of JSON.

A peer runs in an interpreter that has its package, and imports nothing of jaxmlip.
"""

import json
import sys
from importlib.metadata import version

import numpy as np
import torch


def serve(load, tasks, packages=("torch",)) -> None:
    """Prints its versions, then answers each request by tasks[request["task"]](model, request).

    `load` makes the model from the arguments of the command line; a task returns seconds or other numbers.
    """
    out, sys.stdout = sys.stdout, sys.stderr  # packages print when they start, and later
    model = load(*sys.argv[1:])
    print(json.dumps({name: version(name) for name in packages}), file=out, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        torch.set_num_threads(request["threads"])
        answer = tasks[request["task"]](model, request)
        print(json.dumps(np.round(answer, 6).tolist()), file=out, flush=True)
