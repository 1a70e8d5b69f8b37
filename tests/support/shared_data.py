"""The real data sets that some tests use, where they are, and a server for downloads of others."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("TUTTI_DATA_DIR") or Path(__file__).parents[2] / "../shared/data").resolve()


def needs(name: str) -> pytest.MarkDecorator:
    """Skip where the folder of that data set is absent."""
    return pytest.mark.skipif(
        not (SHARED / name).is_dir(), reason=f"needs the files of {name} in TUTTI_DATA_DIR/{name} or ../shared/data"
    )


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a server on this machine that has the files of a folder."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()
        thread.join()
