"""The chain: contracts, wallets, transactions, and two ways to reach a node."""
