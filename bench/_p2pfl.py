"""One run of p2pfl as its own MNIST example sets it up: nodes in one process, gRPC between them; prints a line of JSON.

Run by bench/ring_training.py with an interpreter that has p2pfl: PYTHON _p2pfl.py ROUNDS WIDTHS FILE...
WIDTHS are those of the hidden layers, as 256,128; each FILE has the rows of one node. `seconds` are those of each round
but the first: from the end of the one before to its own, at the first node.
"""

import json
import sys
import time
from itertools import pairwise

import numpy as np
from datasets import Dataset, DatasetDict
from p2pfl.examples.mnist.model.mlp_pytorch import model_build_fn
from p2pfl.learning.dataset.p2pfl_dataset import P2PFLDataset
from p2pfl.node import Node
from p2pfl.utils.utils import set_standalone_settings, wait_convergence, wait_to_finish

BATCH = 128
LOOK_EVERY = 0.005


def rows_of(file):
    with np.load(file) as arrays:
        rows = {"image": arrays["x"].astype(np.float32) / 255, "label": arrays["y"]}
    part = Dataset.from_dict({name: list(values) for name, values in rows.items()}).with_format("torch")
    return P2PFLDataset(DatasetDict({"train": part, "test": part.select(range(BATCH))}), batch_size=BATCH)


def ends_of_rounds(node, rounds):
    """When each round ended, at this node."""
    ends, seen = [], None
    while len(ends) < rounds:
        now = node.state.round
        if seen is not None and now != seen:
            ends.append(time.perf_counter())
        if now is not None or seen is not None:
            seen = now
        time.sleep(LOOK_EVERY)
    return ends


def main():
    rounds, widths, *files = int(sys.argv[1]), [int(width) for width in sys.argv[2].split(",")], *sys.argv[3:]
    set_standalone_settings()
    nodes = [Node(model_build_fn(hidden_sizes=widths), rows_of(file), addr="127.0.0.1") for file in files]
    for node in nodes:
        node.start()
    try:
        for one, other in zip(nodes[1:], nodes, strict=False):
            one.connect(other.addr)
        wait_convergence(nodes, len(nodes) - 1, only_direct=False, wait=60)
        nodes[0].set_start_learning(rounds=rounds, epochs=1)
        ends = ends_of_rounds(nodes[0], rounds)
        wait_to_finish(nodes, timeout=600)
        print(json.dumps({"seconds": [b - a for a, b in pairwise(ends)]}), flush=True)
    finally:
        for node in nodes:
            node.stop()


if __name__ == "__main__":
    main()
