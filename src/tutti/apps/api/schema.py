"""msgspec types at the REST edge: the same classes are decoded, encoded and published in the OpenAPI document."""

import re
from ast import literal_eval
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from blake3 import blake3
from fastapi import FastAPI, Header, Query
from fastapi.openapi.utils import get_openapi
from fastapi.params import Depends
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tutti.domain.ledger.operations import PEOPLES_KEY, AccountName, PeoplesKey
from tutti.domain.market.money import ClientName, TableDigest
from tutti.domain.spec import Name
from tutti.services.views import View

T = TypeVar("T")

MAX_BODY = 1024 * 1024
"""Bytes of a JSON request body."""

REFS = "#/components/schemas/{name}"

Limit = Annotated[int, Query(ge=1, le=1000, description="How many items to return at most.")]
After = Annotated[str, Query(max_length=200, description="Continue after this item: the `next` of the last page.")]
OrderKey = Annotated[str, Header(alias="Idempotency-Key", pattern=PEOPLES_KEY)]

_encode = msgspec.json.Encoder().encode


class Problem(View, frozen=True, kw_only=True):
    """An error (RFC 9457, https://www.rfc-editor.org/rfc/rfc9457): `detail` says what was expected and what came."""

    type: str
    title: str
    status: int
    detail: str


class Answer(Response, Generic[T]):
    """A JSON response whose body is a `T`."""

    media_type = "application/json"

    def __init__(self, content: T, status_code: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(content, status_code, headers)

    def render(self, content: Any) -> bytes:
        return _encode(content)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A GET is answered with an ETag, or with 304 to who has that already."""
        if scope["type"] == "http" and scope["method"] == "GET" and self.status_code == 200:
            etag = f'"{blake3(self.body).hexdigest()[:32]}"'
            self.headers["etag"] = etag
            if etag in Headers(scope=scope).get("if-none-match", ""):
                await Response(status_code=304, headers={"etag": etag})(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


class Body(Generic[T]):
    """A dependency that reads a JSON body as `T`; an empty body counts as `{}`.

    `convert` builds the value from plain data where msgspec's own conversion is not enough; `type` is what
    the OpenAPI document says, and the default conversion.
    """

    def __init__(self, type: Any, convert: Callable[[dict[str, Any]], T] | None = None) -> None:
        self.type = type
        self._convert: Callable[[dict[str, Any]], T] = convert or (lambda plain: msgspec.convert(plain, type))

    async def __call__(self, request: Request) -> T:
        plain = _plain(await read_body(request))
        try:
            return self._convert(plain)
        except msgspec.ValidationError as error:
            said = _in_words(error, plain) or f"{error}{_known_fields(self.type, error)}"
            raise HTTPException(422, said) from None


KEY = "a key of 1 to 160 printable characters of ASCII, without spaces and slashes"
LETTERS = "letters, digits and {}, beginning with a letter or a digit, {} characters at most"
WORDS = {
    get_args(Name)[1].pattern: "a name of " + LETTERS.format("._-", 64),
    get_args(ClientName)[1].pattern: "a name of " + LETTERS.format("._@-", 64),
    get_args(AccountName)[1].pattern: "an account of " + LETTERS.format("._@:-", 100),
    get_args(PeoplesKey)[1].pattern: KEY,
    PEOPLES_KEY: KEY,
    get_args(TableDigest)[1].pattern: "the digest of an uploaded table, 64 hex digits",
}
"""What the patterns of names mean, for who has hit one."""


def _in_words(error: msgspec.ValidationError, plain: dict[str, Any]) -> str:
    """Of a value at the top of a body that is not as it should be: what was expected, and what came."""
    found = re.fullmatch(r"Expected (`\w+` matching regex (.+)|`\w+`[^,]*) - at `\$\.(\w+)`", str(error))
    if found is None or found[3] not in plain:
        return ""
    words = WORDS.get(literal_eval(found[2]), found[1]) if found[2] else found[1]
    return f"{found[3]}: expected {words}, came {str(plain[found[3]])[:100]!r}"


def _known_fields(type: Any, error: msgspec.ValidationError) -> str:
    """What to write instead of an unknown field."""
    fields = getattr(type, "__struct_fields__", ())
    return f"; there are: {', '.join(fields)}" if fields and "unknown field" in str(error) else ""


async def read_body(request: Request) -> bytes:
    """The body of a JSON request; refuses other types (415) and more than MAX_BODY bytes (413)."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise HTTPException(413, f"a request body may have {MAX_BODY} bytes, this one has more")
    except ClientDisconnect:
        raise HTTPException(400, "the request ended before its body did") from None
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if body and kind != "application/json" and not kind.endswith("+json"):
        raise HTTPException(415, f"expected Content-Type application/json, came {kind or 'none'!r}")
    return bytes(body)


def _plain(body: bytes) -> dict[str, Any]:
    try:
        plain = msgspec.json.decode(body) if body.strip() else {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HTTPException(400, f"the body is not JSON that can be read: {error}") from None
    if not isinstance(plain, dict):
        raise HTTPException(422, f"expected a JSON object, came {type(plain).__name__}")
    return plain


class Api:
    """Adds handlers to an app; their annotations (`Answer[T]`, `Depends(Body(T))`) become the published schema.

    `paths` describes the routes that the app has beside these.
    """

    def __init__(self, app: FastAPI, paths: Mapping[str, Any]) -> None:
        self._app = app
        self._paths = paths
        self._types: list[Any] = [Problem]
        app.openapi = self._document  # type: ignore[method-assign]  # FastAPI's documented way to extend it

    def add(self, method: str, path: str, handler: Callable[..., Any], tag: str, status: int = 200) -> None:
        hints = get_type_hints(handler, include_extras=True)
        extra: dict[str, Any] = {}
        for hint in hints.values():
            if isinstance(body := _dependency(hint), Body):
                extra["requestBody"] = {"content": {"application/json": {"schema": self._schema(body.type)}}}
        if get_origin(hints["return"]) is Answer:
            content = {"application/json": {"schema": self._schema(*get_args(hints["return"]))}}
            extra["responses"] = {str(status): {"content": content}}
        self._app.add_api_route(
            path,
            handler,
            methods=[method],
            tags=[tag],
            status_code=status,
            response_model=None,
            response_class=Response,
            responses={"default": _problem_response()},
            openapi_extra=extra,
        )

    def _schema(self, type: Any) -> Any:
        self._types.append(type)
        (schema,), _ = msgspec.json.schema_components([type], ref_template=REFS)
        return schema

    def _document(self) -> dict[str, Any]:
        app = self._app
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                summary=app.summary,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            _, components = msgspec.json.schema_components(self._types, ref_template=REFS)
            document.setdefault("components", {}).setdefault("schemas", {}).update(components)
            document["paths"].update(self._paths)
            app.openapi_schema = document
        return app.openapi_schema


def _dependency(hint: Any) -> Any:
    """What `Annotated[..., Depends(x)]` depends on, if it is that."""
    extras = getattr(hint, "__metadata__", ())
    return next((extra.dependency for extra in extras if isinstance(extra, Depends)), None)


def _problem_response() -> dict[str, Any]:
    schema = {"$ref": REFS.format(name=Problem.__name__)}
    return {"description": "What went wrong.", "content": {"application/problem+json": {"schema": schema}}}
