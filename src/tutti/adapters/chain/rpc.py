"""JSON-RPC to an Ethereum node (https://ethereum.org/en/developers/docs/apis/json-rpc/), as little as is needed."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import httpx

from tutti.core.errors import TuttiError, Unavailable

DEADLINE_SECONDS = 20.0


class Rpc(Protocol):
    """Whatever answers JSON-RPC: a node over HTTP, or the chain in this process."""

    async def call(self, method: str, *params: Any) -> Any:
        """The result; raises RpcRefused with what the node said, Unavailable if none answered."""
        ...

    async def call_all(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The results of several, (method, parameters…) each, at once; raises for the first that fails."""
        ...

    async def close(self) -> None: ...


class RpcRefused(TuttiError):
    """The node answered with an error. `data` is what a contract reverted with, if one did."""

    def __init__(self, message: str, data: bytes | None = None) -> None:
        super().__init__(message)
        self.data = data


class HttpRpc:
    """A node at a URL. Safe to share: each `call` or `call_all` is one request."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.AsyncClient(timeout=DEADLINE_SECONDS, limits=httpx.Limits(max_connections=8))

    async def call(self, method: str, *params: Any) -> Any:
        return _result(await self._ask(_request(0, method, params)), self.url)

    async def call_all(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        answers = await self._ask([_request(id, method, params) for id, (method, *params) in enumerate(calls)])
        if not isinstance(answers, list) or len(answers) != len(calls):
            _result(answers, self.url)  # raises, if it is the refusal of all of them
            raise Unavailable(f"what answers at {self.url} does not take several calls in one request")
        answers.sort(key=lambda answer: answer.get("id", 0))
        return [_result(answer, self.url) for answer in answers]

    async def _ask(self, body: Any) -> Any:
        try:
            response = await self._client.post(self.url, json=body)
            return response.json()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable(f"no chain answers at {self.url} ({error or type(error).__name__})") from None
        except ValueError:
            raise Unavailable(f"what answers at {self.url} is no Ethereum node ({response.status_code})") from None

    async def close(self) -> None:
        await self._client.aclose()


def _request(id: int, method: str, params: Iterable[Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": list(params)}


def _result(answer: Any, url: str) -> Any:
    if not isinstance(answer, dict) or ("result" not in answer and "error" not in answer):
        raise Unavailable(f"what answers at {url} is no Ethereum node: {str(answer)[:100]}")
    if "error" in answer:
        raise _refusal(answer["error"])
    return answer["result"]


def _refusal(error: Any) -> RpcRefused:
    """Nodes differ in where they put what the contract reverted with."""
    data = error.get("data") if isinstance(error, dict) else None
    if isinstance(data, dict):
        data = data.get("data")
    found = bytes.fromhex(data[2:]) if isinstance(data, str) and data.startswith("0x") and len(data) % 2 == 0 else None
    return RpcRefused(str(error.get("message", error)) if isinstance(error, dict) else str(error), found)


async def wait_for_receipt(rpc: Rpc, hashes: Sequence[str], seconds: float) -> dict[str, Any] | None:
    """The receipt of whichever of these transactions is in a block; None if none was within so many seconds."""
    pause, loop = 0.01, asyncio.get_running_loop()
    end = loop.time() + seconds
    while True:
        receipts = await rpc.call_all([("eth_getTransactionReceipt", hash) for hash in hashes])
        found: dict[str, Any] | None = next((receipt for receipt in receipts if receipt), None)
        if found is not None or loop.time() >= end:
            return found
        await asyncio.sleep(pause)
        pause = min(2 * pause, 1.0)
