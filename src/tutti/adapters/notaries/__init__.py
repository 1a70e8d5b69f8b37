"""Notaries, a file for each back end."""
