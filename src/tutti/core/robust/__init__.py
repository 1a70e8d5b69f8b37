"""Reducers that hold against some nodes which send anything at all: one page for each paper."""
