"""Flower's rounds with a client that does no work; run with the interpreter that has flwr. Prints seconds per round.

python _flower.py grpc <nodes> <parameters> <rounds>          its own gRPC server and clients
python _flower.py deployment <nodes> <parameters> <rounds>    SuperLink, SuperNodes and `flwr run`
"""

import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
HOSTS = 2
TENSORS = 10
MANY_ROUNDS = 1_000
MARK = "round opened at"
READY_SECONDS = 60.0

SERVER_APP = """
import time, numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
app = ServerApp()

class Timed(FedAvg):
    def configure_train(self, *args, **kwargs):
        print("{mark}", time.time(), flush=True)
        return super().configure_train(*args, **kwargs)

@app.main()
def main(grid, context):
    model = ArrayRecord([np.zeros({part}, np.float32)] * {tensors})
    Timed(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes={nodes}, min_available_nodes={nodes}).start(
        grid=grid, initial_arrays=model, num_rounds={rounds})
"""
CLIENT_APP = """
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()

@app.train()
def train(message, context):
    arrays = [array + 1e-3 for array in message.content["arrays"].to_numpy_ndarrays()]
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1})})
    return Message(content=content, reply_to=message)
"""
PROJECT = """
[project]
name = "nowork"
version = "1.0.0"
description = "no work"
license = "Apache-2.0"
dependencies = []
[tool.hatch.build.targets.wheel]
packages = ["."]
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "nowork.server_app:app"
clientapp = "nowork.client_app:app"
[tool.flwr.app.config]
"""
CONNECTION = """
[superlink]
default = "bench"
[superlink.bench]
address = "127.0.0.1:{port}"
insecure = true
"""


def main() -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    kind, sizes = sys.argv[1], list(map(int, sys.argv[2:]))
    found = {"grpc": grpc, "deployment": deployment, "server": server, "clients": clients}[kind](*sizes)
    if found is not None:
        print(json.dumps({"seconds": found}), flush=True)


# -- the gRPC path ---------------------------------------------------------------------------------------


def grpc(nodes: int, parameters: int, rounds: int) -> list[float]:
    port = free_ports(1)[0]
    with ExitStack() as stack:
        started = child(stack, "server", port, nodes, parameters, rounds)
        for host in range(min(HOSTS, nodes)):
            child(stack, "clients", port, nodes * (host + 1) // HOSTS - nodes * host // HOSTS)
        output, _ = started.communicate()
        seconds: list[float] = json.loads(output.splitlines()[-1])["seconds"]
        return seconds


def server(port: int, nodes: int, parameters: int, rounds: int) -> list[float]:
    import numpy as np
    from flwr.common import ndarrays_to_parameters
    from flwr.server import ServerConfig, start_server
    from flwr.server.strategy import FedAvg

    opened: list[float] = []

    class Timed(FedAvg):
        def configure_fit(self, *args: Any, **kwargs: Any) -> Any:
            opened.append(time.perf_counter())
            return super().configure_fit(*args, **kwargs)

    model = ndarrays_to_parameters([np.zeros(parameters // TENSORS, np.float32)] * TENSORS)
    counts = {"min_fit_clients": nodes, "min_available_clients": nodes}
    strategy = Timed(fraction_fit=1.0, fraction_evaluate=0.0, initial_parameters=model, **counts)
    start_server(server_address=f"127.0.0.1:{port}", config=ServerConfig(num_rounds=rounds + 2), strategy=strategy)
    return [after - before for before, after in pairwise(opened[1:])]


def clients(port: int, count: int) -> None:
    from flwr.client import NumPyClient
    from flwr.compat.client.app import start_client

    class NoWork(NumPyClient):
        def fit(self, parameters: Any, config: Any) -> Any:
            return [array + 1e-3 for array in parameters], 1, {}

    def run() -> None:
        start_client(server_address=f"127.0.0.1:{port}", client=NoWork().to_client())

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# -- the deployment --------------------------------------------------------------------------------------


def deployment(nodes: int, parameters: int, rounds: int) -> list[float]:
    tools = Path(sys.executable).parent
    port, *own = free_ports(1 + nodes)
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        write_app(folder / "app" / "nowork", nodes, parameters, rounds + 2)
        (folder / "home").mkdir()
        (folder / "home" / "config.toml").write_text(CONNECTION.format(port=port))
        environment = {**os.environ, "FLWR_HOME": str(folder / "home"), "PATH": f"{tools}:{os.environ['PATH']}"}
        log = stack.enter_context((folder / "log").open("w"))

        def start(*command: str) -> None:
            stack.callback(end, subprocess.Popen(command, stdout=log, stderr=log, env=environment))

        start(f"{tools}/flower-superlink", "--insecure", "--port", str(port))
        listening(port)
        for its in own:
            start(f"{tools}/flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(its))
        subprocess.run(
            [f"{tools}/flwr", "run", str(folder / "app"), "bench", "--stream"], env=environment, stdout=log, stderr=log
        )
        return opened_in((folder / "log").read_text())


def write_app(package: Path, nodes: int, parameters: int, rounds: int) -> None:
    package.mkdir(parents=True)
    (package.parent / "pyproject.toml").write_text(PROJECT)
    (package / "__init__.py").touch()
    (package / "client_app.py").write_text(CLIENT_APP)
    values = {"mark": MARK, "part": parameters // TENSORS, "tensors": TENSORS, "nodes": nodes, "rounds": rounds}
    (package / "server_app.py").write_text(SERVER_APP.format(**values))


def opened_in(log: str) -> list[float]:
    """Seconds between the rounds that the server app told of; the lines may come twice, and decorated."""
    opened = sorted({float(line.split(MARK)[1].split()[0]) for line in log.splitlines() if MARK in line})
    if len(opened) < 3:
        raise SystemExit(f"Flower's deployment did not get through its rounds:\n{log[-3000:]}")
    return [after - before for before, after in pairwise(opened[1:])]


# -- processes -------------------------------------------------------------------------------------------


def child(stack: ExitStack, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, __file__, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    stack.callback(end, process)
    return process


def end(process: "subprocess.Popen[Any]") -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def listening(port: int) -> None:
    until = time.monotonic() + READY_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    main()
