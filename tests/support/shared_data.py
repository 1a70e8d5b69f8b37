"""The real data sets that some tests use, where they are."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("TUTTI_DATA_DIR") or Path(__file__).parents[2] / "../shared/data").resolve()


def needs(name: str) -> pytest.MarkDecorator:
    """Skip where the folder of that data set is absent."""
    return pytest.mark.skipif(
        not (SHARED / name).is_dir(), reason=f"needs the files of {name} in TUTTI_DATA_DIR/{name} or ../shared/data"
    )
