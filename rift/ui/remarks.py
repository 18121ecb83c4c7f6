"""What was changed, skipped or warned about on the way in, each row beside the picture that it is about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from rift.dataset import ImageSet
from rift.review import Item
from rift.ui.state import App
from rift.ui.widgets import html, join

FIRST, MOST = 12, 200  # rows shown, and rows in all
KINDS = {"warnings": "Warnings", "changed": "Changed", "skipped": "Skipped"}


def tables(app: App, home: str, images: ImageSet) -> Markup:
    """Return the remarks of a set: a table for each kind, its first rows in sight once opened and the rest folded."""
    place = {name: index for index, name in enumerate(images.ids.tolist())}

    def rows(items: Sequence[Item]) -> Markup:
        return join(
            '<tr><td class="thumbs">{pictures}</td><td class="file">{file}</td><td>{message}</td>'
            "<td><code>{code}</code></td></tr>",
            [
                {"pictures": pictures(item), "file": item.file or "the whole set", "message": item.message, "code": item.code}
                for item in items
            ],
        )

    def pictures(item: Item) -> Markup:
        about = [name for name in (item.file, *item.pictures) if name in place]
        shown = [{"name": name, "address": app.files.picture(home, images.digest, place[name])} for name in about[:3]]
        return join('<img loading="lazy" width="40" height="40" src="{address}" alt="{name}" title="{name}">', shown)

    found = []
    for kind, title in KINDS.items():
        items = getattr(images.report, kind)
        if not items:
            continue
        first, rest = items[:FIRST], items[FIRST:MOST]
        more = f"{len(items) - MOST} further ones are not listed." if len(items) > MOST else ""
        folded = html(
            "<details><summary>{n} more</summary>{table}<p>{more}</p></details>",
            n=len(rest),
            table=_table(rows(rest), title),
            more=more,
        )
        found.append(
            html(
                "<details{opened}><summary>{title} <span class=count>{n}</span></summary>{table}{folded}</details>",
                opened=Markup(" open") if kind == "warnings" else "",
                title=title,
                n=len(items),
                table=_table(rows(first), title),
                folded=folded if rest else "",
            )
        )
    return Markup("").join(found)


def _table(rows: Any, title: str) -> Markup:
    return html(
        '<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table class="plain remarks"><thead><tr>'
        '<th scope="col">Picture</th><th scope="col">File</th><th scope="col">What</th><th scope="col">Code</th></tr></thead>'
        "<tbody>{rows}</tbody></table></div>",
        title=title,
        rows=rows,
    )
