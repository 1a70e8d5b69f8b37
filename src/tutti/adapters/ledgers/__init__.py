"""Ledgers, a file for each back end."""
