"""The error tree. `UserError` is a mistake of whoever called; anything else that escapes is ours."""


class TuttiError(Exception):
    """Base of every error that Tutti raises on purpose. The message says what was expected, what came, what to do."""


class UserError(TuttiError):
    """The caller can mend it: a wrong option, a missing file, a refused combination."""


class NotFound(UserError):
    """There is no such job, node, model or blob."""


class Conflict(UserError):
    """The request is fine, but not in the present state."""


class Forbidden(UserError):
    """The token is missing, expired, used up, or does not allow this."""


class Unproven(Forbidden):
    """Nobody has proved who they are: the name, password, session or token is wrong or has expired."""


class StorageError(TuttiError):
    """A disk or database failed: full, read-only, corrupt. Nothing was recorded; the caller may try again."""


class CorruptBlob(StorageError):
    """Stored bytes do not have the digest they are named by."""


class Unavailable(StorageError):
    """A server that is needed does not answer. It may or may not have done what was asked: ask again, with the key."""
