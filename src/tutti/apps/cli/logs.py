"""What long-running commands say on standard error: lines for people, or JSON for a collector."""

import json
import logging
import os
import re
from datetime import UTC, datetime

from tutti.core.errors import UserError

LOG_FORMAT = "tutti.log-format"
"""Under which a command notes for `run` how its log is written."""

_PLACE = re.compile(r"(?:(job|round|node) )?%[-+ #0]*\d*(?:\.\d+)?[a-zA-Z]")
"""A place for an argument in a message of ours, and the word before it that says what it is."""


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the ids of job, round and node that it is about."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **ids_of(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def last_line(message: str, error: BaseException | None = None) -> str:
    """Why a program ends, as its log's last line of JSON; with `error`, how it came to that."""
    came = None if error is None else (type(error), error, error.__traceback__)
    return JsonLines().format(logging.LogRecord("tutti", logging.ERROR, "", 0, message, None, came))


def ids_of(record: logging.LogRecord) -> dict[str, object]:
    """The arguments that follow the words job, round and node in the message's template, so not in its text."""
    if not isinstance(record.args, tuple):
        return {}
    words = (found[1] for found in _PLACE.finditer(str(record.msg).replace("%%", "")))
    return {word: argument for word, argument in zip(words, record.args, strict=False) if word}


def log_to_stderr(form: str = "text") -> None:
    """Raises UserError for a level in TUTTI_LOG that there is not."""
    level = os.environ.get("TUTTI_LOG", "INFO").upper()
    if level not in logging.getLevelNamesMapping():
        raise UserError(f"TUTTI_LOG: expected DEBUG, INFO, WARNING or ERROR, came {level!r}")
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    if form == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines())
    for chatty in ("httpx", "uvicorn"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
