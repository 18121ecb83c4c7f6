"""Read-only links: a random token opens one page with the numbers and plots of one comparison, until it is revoked.

The token is 128 bits at random and is nowhere kept: the lab has its hash, `shares/<hash>.json`, and beside it the page. Pictures
are on it only if the person who shares ticked them. Without the tick there is none at all, not even of the natural photos, and
the names of files, which may be those of patients, are numbers. The names of the set and of its classes are on it.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rift import catalog, dataset, images, measuring, report, service
from rift.config import Settings
from rift.errors import DataError, RunError, UserError
from rift.runs import Lab, write_json

PIXELS = 96
MOST_PICTURES = 120


class Share(Settings):
    """What a link opens; its name is the hash of its token."""

    name: str
    home: str  # which of the labs the comparison is in
    comparison: str
    pictures: bool
    created: str  # ISO, UTC


def create(lab: Lab, home: str, comparison: str, *, pictures: bool) -> str:
    """Share a comparison and return the token, which is told this once; `run.missing` while nothing of it is finished."""
    token = secrets.token_urlsafe(16)
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    share = Share(name=_hash(token), home=home, comparison=comparison, pictures=pictures, created=created)
    folder = lab.root / "shares"
    folder.mkdir(exist_ok=True)
    write_json(folder / f"{share.name}.json", share.model_dump())
    return token


def shares(lab: Lab) -> list[Share]:
    """Return what is shared, newest first."""
    found = []
    for path in (lab.root / "shares").glob("*.json"):
        with suppress(OSError, ValidationError):
            found.append(Share.model_validate_json(path.read_bytes()))
    return sorted(found, key=lambda share: share.created, reverse=True)


def revoke(lab: Lab, name: str) -> None:
    """End a link; from now on its address says that nothing is there. One that has ended already stays so."""
    if re.fullmatch("[0-9a-f]{64}", name):
        for ending in ("json", "html"):
            (lab.root / "shares" / f"{name}.{ending}").unlink(missing_ok=True)


def revoke_all(lab: Lab, home: str, comparison: str) -> None:
    """End all links to a comparison, as when it is deleted."""
    for share in shares(lab):
        if (share.home, share.comparison) == (home, comparison):
            revoke(lab, share.name)


def find(lab: Lab, token: str) -> Share:
    """Return what a token opens; `run.missing` for one that was never given out or was revoked."""
    path = lab.root / "shares" / f"{_hash(token)}.json"
    try:
        return Share.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise RunError("run.missing", "There is nothing under this link: it was revoked, or it was never given out.") from None


def page(lab: Lab, labs: Mapping[str, Lab], share: Share) -> Path:
    """Return the page that a link opens, drawn anew once more was measured; a UserError where its comparison is gone."""
    if share.home not in labs or share.comparison not in service.comparisons(labs[share.home]):
        raise RunError("run.missing", "What was shared here has been deleted.")
    home, name = labs[share.home], share.comparison
    path = lab.root / "shares" / f"{share.name}.html"
    document = service.result(home, name)
    found = [home.comparisons / name / "comparison.json"]
    found += [one for run in service.runs(service.arms(home, name)) for one in run.path.glob("measures/*.json")]
    newest = max((one.stat().st_mtime for one in found if one.exists()), default=0.0)
    if path.exists() and path.stat().st_mtime >= newest and found[0].exists():
        return path
    measured = service.measures(home, name)
    if share.pictures:
        report.write(document, measured, path, natural=_natural(home, name), galleries=list(_galleries(home, name)))
    else:
        names = _names(home, name)
        report.write(_nameless(_bare(document), names), _nameless(measured, names), path)
    if not (lab.root / "shares" / f"{share.name}.json").exists():  # it was revoked meanwhile
        path.unlink(missing_ok=True)
        raise RunError("run.missing", "There is nothing under this link: it was revoked.")
    return path


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _bare(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a comparison document without what its door said of single files; the numbers of such remarks stay."""
    data = dict(document["data"])
    hidden = {"file": "", "message": "The names of files are not shared."}
    for kind in ("changed", "skipped"):
        data[kind] = [{**one, **hidden} for one in data[kind]]
    data["warnings"] = [one if not one["file"] else {**one, **hidden} for one in data["warnings"]]
    natural = dict(document["natural"])
    natural["warnings"] = [one for one in natural["warnings"] if not one["file"]]
    return {**document, "data": data, "natural": natural}


def _names(lab: Lab, name: str) -> dict[str, str]:
    """Return what each image's id is called where ids are not told."""
    order, _ = service.order_of(lab, name)
    sets = (("image", order.data), ("photo", order.natural))
    return {str(id): f"{kind} {i}" for kind, data in sets for i, id in enumerate(dataset.load(lab.data / data).ids, 1)}


def _nameless(value: Any, names: Mapping[str, str]) -> Any:
    """Return the same document with every image's id replaced."""
    if isinstance(value, Mapping):
        return {key: _nameless(item, names) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_nameless(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def _natural(lab: Lab, name: str) -> Any:
    found = dataset.load(lab.data / service.order_of(lab, name)[0].natural)
    return found.pixels(report.PHOTO_PIXELS) if found.has_pictures else None


def _galleries(lab: Lab, name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of pictures that the diagnostics show, as the page holds them."""
    left = MOST_PICTURES
    for diagnostic in catalog.names("diagnostics"):
        for row in measuring.pictures(lab, name, diagnostic, measuring.results(lab, name, diagnostic)):
            cells = []
            for cell in row["pictures"][:left]:
                with suppress(UserError, LookupError, OSError):
                    cells.append({"caption": cell["caption"], "uri": report.data_uri(_pixels(lab, *cell["place"]), PIXELS)})
            left -= len(cells)
            if cells:
                yield {"caption": row["caption"], "pictures": cells}


def _pixels(lab: Lab, kind: str, *place: Any) -> Any:
    if kind == "captured":
        return measuring.captured(lab, *place)
    data, index = place
    if not (lab.data / data).is_dir():
        raise DataError("data.missing", "The images were deleted.")
    return images.fit(dataset.load(lab.data / data).picture(index, PIXELS), PIXELS)
