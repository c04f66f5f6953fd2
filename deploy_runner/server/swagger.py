"""Swagger UI at /docs: its own files, from the package that brings them or from beside this one.

fastapi-swagger is read, not imported: it follows Swagger UI's releases, and depends on FastAPI, which the
Flask app does without. Nothing is loaded from another host, and no validator is asked.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

__all__ = ["CONTENT_SECURITY_POLICY", "FILES", "FOLDER", "PAGE", "START", "source"]

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Swagger UI has styles within its elements."""
FOLDER = "swagger"
"""Where a container has the files, beside this module."""
FILES = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
}

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<script src="docs/swagger-ui-bundle.js" defer></script>
<script src="docs/start.js" defer></script>
</head>
<body><div id="swagger-ui"></div></body>
</html>
"""
START = """"use strict";
SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", validatorUrl: null, tryItOutEnabled: true});
"""


def source() -> Path | None:
    """Return the folder with Swagger UI's files, None where there is none."""
    beside = Path(__file__).with_name(FOLDER)
    found = importlib.util.find_spec("fastapi_swagger")
    places = [
        beside,
        *(Path(place) / "resources" for place in (found and found.submodule_search_locations) or ()),
    ]
    return next((place for place in places if all((place / name).is_file() for name in FILES)), None)
