"""One run of hivemind's averager: PEERS processes average SIZE floats ROUNDS times; prints seconds of each, as JSON.

Run by bench/ring_averages.py with an interpreter that has hivemind: PYTHON _hivemind.py PEERS SIZE ROUNDS
"""

import json
import multiprocessing
import sys
import time


def peer(number, initial, peers, size, rounds, ready, results):
    import hivemind
    import torch
    from hivemind.averaging import DecentralizedAverager

    torch.set_num_threads(1)
    dht = hivemind.DHT(initial_peers=initial, start=True)
    averager = DecentralizedAverager(
        [torch.full((size,), float(number))],
        dht,
        prefix="bench",
        target_group_size=peers,
        min_group_size=peers,
        min_matchmaking_time=1.0,
        request_timeout=1.0,
        start=True,
    )
    for _ in range(rounds):
        ready.wait()
        began = time.perf_counter()
        done = None
        while done is None:
            done = averager.step(timeout=60.0, allow_retries=True)
        results.put(time.perf_counter() - began)
        ready.wait()
    averager.shutdown()
    dht.shutdown()


def main():
    peers, size, rounds = map(int, sys.argv[1:])
    import hivemind

    context = multiprocessing.get_context("fork")
    root = hivemind.DHT(start=True)
    initial = [str(address) for address in root.get_visible_maddrs()]
    ready, results = context.Barrier(peers + 1), context.Queue()
    processes = [
        context.Process(target=peer, args=(n, initial, peers, size, rounds, ready, results)) for n in range(peers)
    ]
    for process in processes:
        process.start()
    for number in range(rounds):
        ready.wait()
        if not number:
            print(json.dumps("ready"), flush=True)
        ready.wait()
    times = sorted(results.get(timeout=300) for _ in range(peers * rounds))
    print(json.dumps({"seconds": times[peers * rounds // 2]}), flush=True)
    for process in processes:
        process.terminate()
    root.shutdown()


if __name__ == "__main__":
    main()
