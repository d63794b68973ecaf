"""A picture in a request: the body itself, or the one file of a form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploykit.serving.images import BadImageError

FORM = b"multipart/form-data"


async def file_in(headers: Mapping[bytes, bytes], body: bytes) -> bytes:
    """Return the file that a request carries.

    Args:
        headers: of the request, names in lower case.
        body: of the request, whole.

    Raises:
        BadImageError: a form that is damaged, or holds something else than one file.
    """
    if not headers.get(b"content-type", b"").lower().startswith(FORM):
        return body
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException
    from starlette.formparsers import MultiPartException
    from starlette.requests import Request

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    request = Request({"type": "http", "headers": list(headers.items())}, receive)
    try:
        async with request.form(max_files=1, max_fields=0) as form:
            files = [value for value in form.values() if isinstance(value, UploadFile)]
            if len(files) == 1:
                return await files[0].read()
    except (MultiPartException, HTTPException, KeyError, ValueError) as error:
        raise BadImageError("the form must hold one file and nothing else") from error
    raise BadImageError("the form must hold one file and nothing else")
