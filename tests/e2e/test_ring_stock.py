"""All services of a ring, called by a client and answered by a server that Apache's Thrift compiler made."""

import json
import queue
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3
from thrift.protocol.TBinaryProtocol import TBinaryProtocol, TBinaryProtocolFactory
from thrift.server.TServer import TThreadedServer
from thrift.transport.TSocket import TServerSocket, TSocket
from thrift.transport.TTransport import TFramedTransport, TFramedTransportFactory

from support.commands import DEADLINE, running
from support.ports import free_port
from tutti.adapters.fabrics.ring import PROCESS, node_of
from tutti.adapters.thrift.idl import PROTOCOL, compute_node, key_bytes, supernode, training_node
from tutti.domain.spec import load_spec
from tutti.ring.consensus import Fetch
from tutti.ring.identifiers import identifier
from tutti.testing.fabrics import registration
from tutti.wire.messages import Heartbeat, Registered, decode_from_coordinator, encode

sys.path.insert(0, str(Path(__file__).parent.parent / "stock_thrift"))
from tutti_ring.compute_node import ComputeNode
from tutti_ring.compute_node.ttypes import NotFound, Peer, Refused
from tutti_ring.supernode import Supernode
from tutti_ring.training_node import TrainingNode
from tutti_ring.training_node.ttypes import NotNow, Placement

SERVICES = (
    (compute_node.ComputeNode, ComputeNode),
    (supernode.Supernode, Supernode),
    (training_node.TrainingNode, TrainingNode),
)


@contextmanager
def client(service, port):
    socket = TSocket("127.0.0.1", port)
    socket.setTimeout(1000 * DEADLINE)
    transport = TFramedTransport(socket)
    transport.open()
    yield service.Client(TBinaryProtocol(transport))
    transport.close()


class Member:
    """A handler of the calls that a leader makes to members: what it says is kept, and the end of a session too."""

    def __init__(self):
        self.heard = queue.Queue()

    def agree(self, protocol, sender, message):
        pass

    def hear(self, leader, session, message):
        self.heard.put((leader.address, session, decode_from_coordinator(message)))

    def over(self, leader, session, reason, replaced):
        self.heard.put((leader.address, session, reason))

    def ask(self, protocol, key, asker):
        raise Refused("it takes part in sessions only")


@contextmanager
def member():
    """Its handler, and as which peer it listens."""
    socket, handler = TServerSocket("127.0.0.1", 0), Member()
    socket.listen()
    address = f"127.0.0.1:{socket.handle.getsockname()[1]}"
    socket.listen = lambda: None  # serve() listens again, at another port
    processor = TrainingNode.Processor(handler)
    server = TThreadedServer(processor, socket, TFramedTransportFactory(), TBinaryProtocolFactory(), daemon=True)
    threading.Thread(target=server.serve, daemon=True).start()
    yield handler, Peer(key_bytes(identifier(address)), address, 1)
    socket.close()


@pytest.mark.parametrize(("ours", "theirs"), SERVICES)
def test_the_compiled_idl_is_that_of_the_files(ours, theirs):
    """The Thrift compiler has been run (see docs/ring.md) since the IDL was changed."""
    for name in ours.thrift_services:
        module = theirs if hasattr(theirs, f"{name}_args") else ComputeNode  # inherited
        for part in ("args", "result"):
            mine = getattr(ours, f"{name}_{part}").thrift_spec
            compiled = {field[0]: field[2] for field in getattr(module, f"{name}_{part}").thrift_spec if field}
            assert {number: field[1] for number, field in mine.items()} == compiled


def test_every_call_of_every_service(tmp_path):
    seed, port = free_port(), free_port()
    address = f"127.0.0.1:{port}"
    state = ("--state-dir", tmp_path / "state")
    with (
        running("ring", "supernode", "--port", seed, cwd=tmp_path),
        running("ring", "node", port, "127.0.0.1", seed, *state, cwd=tmp_path),
        client(Supernode, seed) as ring,
        client(TrainingNode, port) as node,
        member() as (handler, me),
    ):
        # the supernode
        assert [peer.address for peer in ring.members(PROTOCOL)] == [address]
        assert [peer.address for peer in ring.enrol(PROTOCOL, me)] == [address]
        with pytest.raises(Refused, match="use one version"):
            ring.members(PROTOCOL + 1)
        # the member: its place, and blobs
        view = node.ask(PROTOCOL, key_bytes(5), None)
        assert (view.peer.address, view.successors, view.chain) == (address, [], None)
        node.tell(PROTOCOL, Peer(key_bytes(identifier("h:1")), "h:1", 3))
        blob, digest = b"some bytes", blake3(b"some bytes").digest()
        assert node.missing([digest]) == [digest]
        node.store(digest, len(blob), 0, blob)
        assert (node.missing([digest]), node.fetch(digest, 5).data) == ([], blob[5:])
        # what a client asks
        assert json.loads(node.show(PROTOCOL))["leader"] == address
        placement = Placement("toy", blake3(digest.hex().encode()).hexdigest(), 1)
        assert node.keep(PROTOCOL, placement, [digest]) == []
        assert node.kept(PROTOCOL, placement, [digest]).holders[0].address == address
        spec = load_spec({"name": "toy", "dataset": "digits", "model": "linear", "cohort": {"min_nodes": 9}})
        job = node.submit(PROTOCOL, "key", msgspec.json.encode(spec))
        assert node.submit(PROTOCOL, "key", msgspec.json.encode(spec)) == job
        progress = node.progress(PROTOCOL, job)
        assert (json.loads(progress.job)["id"], json.loads(progress.rounds)) == (job, [])
        with pytest.raises(NotFound, match="no job 'none'"):
            node.progress(PROTOCOL, "none")
        with pytest.raises(Refused, match="nothing to force"):
            node.reform(PROTOCOL)
        # a session, in which the leader calls too; a message of agreement
        session = 7 << PROCESS | 1
        node.attach(PROTOCOL, me, session, encode(registration(node_of(me.address), "")))
        leader, same, welcome = handler.heard.get(timeout=DEADLINE)
        assert (leader, same, type(welcome)) == (address, session, Registered)
        node.say(session, encode(Heartbeat()))
        node.leave(session)
        assert handler.heard.get(timeout=DEADLINE) == (address, session, "the node does not listen any more")
        with pytest.raises(NotNow, match="connect anew"):
            node.say(session, encode(Heartbeat()))
        fetch = Fetch(sender=me.address, generation=0, height=-1, tip="")
        node.agree(PROTOCOL, me, msgspec.msgpack.encode(fetch))
        with pytest.raises(NotNow):
            node.hear(me, session, encode(welcome))
        node.over(me, session, "it is over", False)
