"""What the stores in PostgreSQL share: connections, formats, and errors in words.

Addresses are libpq's, https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS, with
`?sslmode=verify-full` and the like.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

from tutti.adapters.addresses import shown
from tutti.adapters.migrations import Format, scripts
from tutti.core.errors import StorageError, UserError

CONNECT_SECONDS = 10.0
COMMAND_SECONDS = 30.0

FORMATS = "CREATE TABLE IF NOT EXISTS tutti_formats (name text PRIMARY KEY, version integer NOT NULL)"
PRESENT = "SELECT version FROM tutti_formats WHERE name = $1"
REMEMBER = "INSERT INTO tutti_formats VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET version = excluded.version"
GOING_DOWN = (asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError, asyncpg.PostgresSystemError)
ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(hashtext('tutti formats'))"


async def connect(url: str) -> "asyncpg.Connection[asyncpg.Record]":
    """Raises UserError for what only a person can mend, StorageError if the server does not answer."""
    with errors(f"reach the database {shown(url)}"):
        return await asyncpg.connect(url, timeout=CONNECT_SECONDS, command_timeout=COMMAND_SECONDS)


async def open_pool(url: str, size: int) -> "asyncpg.Pool[asyncpg.Record]":
    """Connections that are made when they are needed, and anew when they broke."""
    with errors(f"reach the database {shown(url)}"):
        return await asyncpg.create_pool(
            url, min_size=0, max_size=size, timeout=CONNECT_SECONDS, command_timeout=COMMAND_SECONDS
        )


async def migrate(
    db: "asyncpg.Connection[asyncpg.Record]", format: Format, url: str, target: int | None = None
) -> None:
    """Bring a database's tables to a format (None: the newest), all of it or nothing; raises FormatTooNew."""
    with errors(f"prepare the {format.name} in {shown(url)}"):
        async with db.transaction():
            await db.execute(ONE_AT_A_TIME)
            await db.execute(FORMATS)
            present = await db.fetchval(PRESENT, format.name) or 0
            for script in scripts(format, present, target, f"in {shown(url)}"):
                await db.execute(script)
            await db.execute(REMEMBER, format.name, format.newest if target is None else target)


@contextmanager
def errors(doing: str, *, writing: bool = False) -> Iterator[None]:
    """Turn what the driver raises into a UserError or a StorageError that says what to do about it.

    `writing`: also whether anything was recorded. Nobody knows that when the server's answer has not come, or came as
    it went down: it may have committed just before.
    """
    refused, unknown = ("; nothing was recorded", "; perhaps it was recorded") if writing else ("", "")
    try:
        yield
    except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError) as error:
        raise UserError(f"cannot {doing}: {error}: check user and password") from None
    except asyncpg.InvalidCatalogNameError as error:
        raise UserError(f"cannot {doing}: {error}: make it first (`createdb`)") from None
    except asyncpg.InsufficientPrivilegeError as error:
        raise UserError(f"cannot {doing}: {error}: grant this user CREATE on the schema") from None
    except (asyncpg.ClientConfigurationError, ValueError) as error:
        raise UserError(
            f"cannot {doing}: {error}: expected an address such as postgresql://user@host:5432/tutti"
        ) from None
    except TimeoutError as error:
        raise StorageError(f"cannot {doing}: no answer in time{unknown}: look after the server") from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
        # the third: the server's farewell has come, the end of the connection has not
        said = str(error) or type(error).__name__
        answered = isinstance(error, asyncpg.PostgresError) and not isinstance(error, GOING_DOWN)
        raise StorageError(
            f"cannot {doing}: {said}{refused if answered else unknown}: look after the server"
        ) from error
