"""What the page fetches beside Gradio: pictures and documents of the lab, each under a signed token and nothing else.

Gradio's own cache can be read by anyone who has the address of a file, so no user's picture goes through it. A token says
which picture of which set; it is signed with the lab's own secret, so none can be made up, and it outlives a restart.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from itsdangerous import BadSignature, URLSafeSerializer
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from rift import ask, dataset, drafts, images, measuring, service
from rift.errors import UserError
from rift.runs import Lab, write_bytes

MOST_PIXELS = 512
HEADERS = {
    "Cache-Control": "private, max-age=3600",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox allow-scripts allow-downloads",
    "Referrer-Policy": "no-referrer",
}


class Files:
    """Makes the addresses and answers them; `labs` maps a short name to each lab that the page shows."""

    def __init__(self, labs: Mapping[str, Lab], home: Lab):
        self.labs = dict(labs)
        self._sign = URLSafeSerializer(_secret(home.root / "secret"))

    def picture(self, lab: str, data: str, index: int, size: int = 96) -> str:
        """Return the address of one image of a set, cut to a square of `size` px."""
        return "rift/picture/" + self._sign.dumps([lab, data, int(index), size], "picture")

    def captured(self, lab: str, run: str, stem: str, array: str, index: int) -> str:
        """Return the address of one picture that a diagnostic computed with the models of a run."""
        return "rift/captured/" + self._sign.dumps([lab, run, stem, array, int(index)], "captured")

    def photo(self, lab: str, key: str) -> str:
        """Return the address of a photo that was kept by `ask.keep_photo`."""
        return "rift/photo/" + self._sign.dumps([lab, key], "photo")

    def draft(self, lab: str, key: str, digest: str, size: int = 96) -> str:
        """Return the address of one picture of a draft, which is no image set yet."""
        return "rift/draft/" + self._sign.dumps([lab, key, digest, size], "draft")

    def document(self, lab: str, comparison: str, name: str) -> str:
        """Return the address of a comparison's `report.html` or `comparison.json`."""
        return f"rift/document/{self._sign.dumps([lab, comparison, name], 'document')}/{name}"

    def routes(self) -> list[Route]:
        """Return the routes that answer these addresses."""
        return [
            Route("/rift/picture/{token}", self._guarded("picture", self._picture)),
            Route("/rift/captured/{token}", self._guarded("captured", self._captured)),
            Route("/rift/photo/{token}", self._guarded("photo", self._photo)),
            Route("/rift/draft/{token}", self._guarded("draft", self._draft)),
            Route("/rift/document/{token}/{name}", self._guarded("document", self._document)),
        ]

    def _guarded(self, kind: str, answer: Callable[[Any], Response]) -> Callable[[Request], Response]:
        """Return the endpoint of one kind; its tokens are salted with the kind, so they open nothing of another."""

        def endpoint(request: Request) -> Response:
            try:
                return answer(self._sign.loads(request.path_params["token"], kind))
            except BadSignature:
                return Response("There is nothing under this address.", 404, HEADERS, "text/plain")
            except (UserError, LookupError, OSError):
                return Response("It is no longer there.", 410, HEADERS, "text/plain")

        return endpoint

    def _picture(self, token: tuple[str, str, int, int]) -> Response:
        lab, data, index, size = token
        found = dataset.load(self.labs[lab].data / data).picture(index, min(size, MOST_PIXELS))
        return Response(images.jpeg(found), 200, HEADERS, "image/jpeg")

    def _captured(self, token: tuple[str, str, str, str, int]) -> Response:
        lab, run, stem, array, index = token
        return Response(images.encode(measuring.captured(self.labs[lab], run, stem, array, index)), 200, HEADERS, "image/png")

    def _photo(self, token: tuple[str, str]) -> Response:
        lab, key = token
        return Response(images.jpeg(ask.photo(self.labs[lab], key)), 200, HEADERS, "image/jpeg")

    def _draft(self, token: tuple[str, str, str, int]) -> Response:
        lab, key, digest, size = token
        return Response(
            images.jpeg(drafts.picture(self.labs[lab], key, digest, min(size, MOST_PIXELS))), 200, HEADERS, "image/jpeg"
        )

    def _document(self, token: tuple[str, str, str]) -> Response:
        lab, comparison, name = token
        if name == "report.html":
            return FileResponse(service.write_report(self.labs[lab], comparison), headers=HEADERS, filename=name)
        text = json.dumps(service.result(self.labs[lab], comparison), indent=1, ensure_ascii=False)
        return Response(text, 200, HEADERS | {"Content-Disposition": f'attachment; filename="{name}"'}, "application/json")


def _secret(path: Path) -> str:
    """Return the lab's secret, made on first use and readable by its owner only."""
    if not path.exists():
        write_bytes(path, secrets.token_urlsafe(32).encode())
        path.chmod(0o600)
    return path.read_text()
