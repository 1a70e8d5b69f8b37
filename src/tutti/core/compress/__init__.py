"""Codecs for updates, a file each; `_reference.py` says slowly what each of them decodes to."""
