"""Kinds of compute jobs, a file for each."""
