"""The chain: contracts, wallets, transactions, and two ways to reach a node."""

import sys

_limit = sys.getrecursionlimit()
import eth_account  # noqa: E402, F401

# py_ecc behind it raises the limit so far that deeply nested JSON, which anybody may send to this process, overflows
# the stack and kills it. Nothing here needs that; py-evm does the same, see `embedded`.
sys.setrecursionlimit(_limit)
