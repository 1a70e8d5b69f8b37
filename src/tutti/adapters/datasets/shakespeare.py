"""Shakespeare's plays by role, one node for each (McMahan et al. 2017, https://arxiv.org/abs/1602.05629, section 3).

Characters are numbers, and one example is a window of text with the character after it, as in LEAF (Caldas et al.
2018, https://arxiv.org/abs/1812.01097). The text is A. Karpathy's excerpt of 1.1 million characters in place of the
whole plays, so results are not those of the papers.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tutti.adapters.datasets._common import BadData, Rows, source
from tutti.adapters.datasets._files import File, locate
from tutti.domain.spec import DataSchema, Positive

_FILE = File(
    "input.txt",
    "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
)
ALPHABET = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_TRAIN_SHARE = 0.8


def _schema(context: int) -> DataSchema:
    return DataSchema("classification", (context,), len(ALPHABET), classes=tuple(ALPHABET))


@source("shakespeare", _schema)
def shakespeare(
    path: str = "", context: Positive = 80, stride: Positive = 1, smallest: Positive = 1, download: bool = False
) -> Rows:
    """1.1 million characters of 299 roles: the next character after `context` ones, 65 classes.

    input.txt is looked for in `path`, or else in the folders $TUTTI_DATA_DIR and ../shared/data. The first 80 % of
    what each role says is for training, the rest is split=test. stride=10 makes an example of every tenth character
    only; smallest=1000 leaves out roles of fewer characters. partition=natural-id makes a node of each role.
    download=true fetches input.txt into $TUTTI_DATA_DIR.
    """
    (file,) = locate("shakespeare", [_FILE], path, download=download)
    roles = {role: text for role, text in _speeches(file).items() if len(text) >= smallest}
    if not roles:
        raise BadData(f"shakespeare: no role has {smallest} characters; lower smallest=")
    parts = [_examples(text, context, stride) for text in roles.values()]
    sizes = [len(y) for _, y, _ in parts]
    x, y, held = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Rows(x, y, _schema(context), np.flatnonzero(held), ids=np.repeat(list(roles), sizes))


def _speeches(file: Path) -> dict[str, str]:
    """All that each role says, in the order of the file, a line break after each speech.

    Of the 309 roles, ten ghosts are only announced in this edition; they say nothing and are left out.
    """
    spoken: dict[str, list[str]] = {}
    for block in file.read_text("ascii").strip().split("\n\n"):
        role, _, speech = block.strip("\n").partition("\n")
        if speech:
            spoken.setdefault(role.rstrip(":"), []).append(speech + "\n")
    return {role: "".join(spoken[role]) for role in sorted(spoken)}


def _examples(text: str, context: int, stride: int) -> tuple[NDArray[np.int8], NDArray[np.int64], NDArray[np.bool_]]:
    """(windows (n, context), next characters (n,), whether they are for test (n,)).

    Before the first word there are line breaks, so that every character has a window. Those of the test part may
    reach back into the training part, as a reader would.
    """
    codes = encode(text)
    padded = np.concatenate([np.zeros(context, np.int8), codes])
    at = np.arange(0, len(codes), stride)
    return sliding_window_view(padded, context)[at], codes[at].astype(np.int64), at >= int(_TRAIN_SHARE * len(codes))


def encode(text: Iterable[str]) -> NDArray[np.int8]:
    """Each character's place in ALPHABET."""
    place = {character: i for i, character in enumerate(ALPHABET)}
    return np.array([place[character] for character in text], np.int8)
