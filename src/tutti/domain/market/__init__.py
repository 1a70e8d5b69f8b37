"""The compute market: workers with stakes, clients with balances, and jobs whose results are checked and paid.

`events` says what can happen, `jobs` what a compute job is and what is due next, `standing` what is known of workers
and clients, `assignment` who gets a job, `money` which ledger orders follow, `rules` the numbers.
"""
