"""What the page fetches beside Gradio: pictures and documents of the lab, each under a signed token and nothing else, and the
one page that a shared link opens.

Gradio's own cache can be read by anyone who has the address of a file, so no user's picture goes through it. A token says
which picture of which set; it is signed with the lab's own secret, so none can be made up, and it outlives a restart.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from itsdangerous import BadSignature, URLSafeSerializer
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from rift import ask, bundle, dataset, drafts, export, images, measuring, plain, service, sharing
from rift.errors import UserError
from rift.runs import Lab
from rift.visitors import Everyone, Labs

Known = Labs | Everyone
MOST_PIXELS = 512
HEADERS = {
    "Cache-Control": "private, max-age=3600",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox allow-scripts allow-downloads",
    "Referrer-Policy": "no-referrer",
}

SHARED = HEADERS | {"Cache-Control": "no-store", "X-Robots-Tag": "noindex"}
GONE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Nothing here · RIFT Lab</title>
<style>
  body { font: 1.1rem/1.6 system-ui, sans-serif; max-width: 34rem; margin: 4rem auto; padding: 0 1rem; }
  h1 { font-size: 1.4rem; }
</style>
<h1>There is nothing under this link</h1>
<p>It was revoked by whoever shared it, what it showed was deleted, or it was never given out. Ask for a new link.</p></html>"""
DOCUMENTS: dict[str, Callable[[Lab, str], str]] = {
    "comparison.json": lambda lab, name: json.dumps(service.result(lab, name), indent=1, ensure_ascii=False),
    "numbers.csv": export.numbers,
    "predictions.csv": export.predictions,
}


class Files:
    """Makes the addresses and answers them; `labs` are those that the page shows."""

    def __init__(self, labs: Known, home: Lab):
        self.labs, self.home = labs, home
        self._sign = URLSafeSerializer(home.key)

    def picture(self, lab: str, data: str, index: int, size: int = 96) -> str:
        """Return the address of one image of a set, cut to a square of `size` px."""
        return "rift/picture/" + self._token("picture", lab, data, int(index), size)

    def captured(self, lab: str, run: str, stem: str, array: str, index: int) -> str:
        """Return the address of one picture that a diagnostic computed with the models of a run."""
        return "rift/captured/" + self._token("captured", lab, run, stem, array, int(index))

    def photo(self, lab: str, key: str) -> str:
        """Return the address of a photo that was kept by `ask.keep_photo`."""
        return "rift/photo/" + self._token("photo", lab, key)

    def draft(self, lab: str, key: str, digest: str, size: int = 96) -> str:
        """Return the address of one picture of a draft, which is no image set yet."""
        return "rift/draft/" + self._token("draft", lab, key, digest, size)

    def document(self, lab: str, comparison: str, name: str) -> str:
        """Return the address of one of the `DOCUMENTS` of a comparison."""
        return f"rift/document/{self._token('document', lab, comparison, name)}/{name}"

    def weights(self, lab: str, run: str, name: str) -> str:
        """Return the address of a run's whole model, `finetuned.safetensors`, or of the lines that load it, `load.py`."""
        return f"rift/weights/{self._token('weights', lab, run, name)}/{name}"

    def bundled(self, lab: str, comparison: str, pictures: bool, weights: bool) -> str:
        """Return the address of a comparison as one zip."""
        return f"rift/bundle/{self._token('bundle', lab, comparison, pictures, weights)}/{comparison}.rift.zip"

    def _token(self, kind: str, lab: str, *rest: Any) -> str:
        return str(self._sign.dumps([self.labs.address(lab), *rest], kind))

    def shared(self, token: str) -> str:
        """Return the address of a shared link; on a public server it names whose it is, by a name that opens nothing."""
        whose = self.labs.address("lab").rpartition("/")[0]
        return f"rift/shared/{whose}.{token}" if whose else f"rift/shared/{token}"

    def routes(self) -> list[Route]:
        """Return the routes that answer these addresses."""
        return [
            Route("/rift/picture/{token}", self._guarded("picture", self._picture)),
            Route("/rift/captured/{token}", self._guarded("captured", self._captured)),
            Route("/rift/photo/{token}", self._guarded("photo", self._photo)),
            Route("/rift/draft/{token}", self._guarded("draft", self._draft)),
            Route("/rift/document/{token}/{name}", self._guarded("document", self._document)),
            Route("/rift/weights/{token}/{name}", self._guarded("weights", self._weights)),
            Route("/rift/bundle/{token}/{name}", self._guarded("bundle", self._bundle)),
            Route("/rift/shared/{token}", self._shared),
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
        found = dataset.load(self.labs.at(lab).data / data).picture(index, min(size, MOST_PIXELS))
        return Response(images.jpeg(found), 200, HEADERS, "image/jpeg")

    def _captured(self, token: tuple[str, str, str, str, int]) -> Response:
        lab, run, stem, array, index = token
        return Response(images.encode(measuring.captured(self.labs.at(lab), run, stem, array, index)), 200, HEADERS, "image/png")

    def _photo(self, token: tuple[str, str]) -> Response:
        lab, key = token
        return Response(images.jpeg(ask.photo(self.labs.at(lab), key)), 200, HEADERS, "image/jpeg")

    def _draft(self, token: tuple[str, str, str, int]) -> Response:
        lab, key, digest, size = token
        return Response(
            images.jpeg(drafts.picture(self.labs.at(lab), key, digest, min(size, MOST_PIXELS))), 200, HEADERS, "image/jpeg"
        )

    def _document(self, token: tuple[str, str, str]) -> Response:
        lab, comparison, name = token
        if name == "report.html":
            return FileResponse(service.write_report(self.labs.at(lab), comparison), headers=HEADERS, filename=name)
        text = DOCUMENTS[name](self.labs.at(lab), comparison)
        kind = "text/csv" if name.endswith(".csv") else "application/json"
        return Response(text, 200, HEADERS | _saved(name), kind)

    def _weights(self, token: tuple[str, str, str]) -> Response:
        lab, name, file = token
        run = self.labs.at(lab).run(name)
        lines = plain.write(self.labs.at(lab), run)
        if file == "load.py":
            return Response(lines, 200, HEADERS | _saved(file), "text/x-python")
        return FileResponse(run.path / "plain.safetensors", headers=HEADERS, filename=plain.FILE)

    def _bundle(self, token: tuple[str, str, bool, bool]) -> Response:
        """Write the zip for this one answer and delete it when it is sent."""
        lab, comparison, pictures, weights = token
        folder = tempfile.TemporaryDirectory(dir=self.home.root, prefix=".bundle-")
        try:
            path = bundle.write(self.labs.at(lab), comparison, Path(folder.name) / "it.zip", pictures=pictures, weights=weights)
        except BaseException:
            folder.cleanup()
            raise
        name = f"{comparison}.rift.zip"
        return FileResponse(path, headers=HEADERS, filename=name, background=BackgroundTask(folder.cleanup))

    def _shared(self, request: Request) -> Response:
        """Answer a shared link; whoever has no valid one learns nothing, not even whether there ever was one."""
        name, _, token = request.path_params["token"].rpartition(".")
        try:
            labs = self.labs.of(name)
            page = sharing.page(labs["lab"], labs, sharing.find(labs["lab"], token))
        except (UserError, LookupError, OSError):
            return Response(GONE, 404, SHARED, "text/html")
        return Response(page.read_bytes(), 200, SHARED, "text/html")


def _saved(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}
