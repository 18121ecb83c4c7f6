"""The table of all comparisons, and what can be done with each: open, pin, rename, delete, and see how two differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from rift import bundle, history, naming, report, sharing
from rift.errors import RunError, UserError
from rift.history import Entry
from rift.ui.state import WORDS, App
from rift.ui.widgets import PRIVATE, html, join, problem, told

MOST_ARMS = 4  # shown in a row
HEADS = ("Task", "CKA", "Natural")
ABOUT = (
    "Everything that was compared here, and what was opened from a bundle. Beside each arm: balanced accuracy (mAP where an "
    "image may show several findings, the error of a reconstruction), debiased CKA with the pretrained model, natural accuracy."
)
BUNDLE = (
    "A comparison that somebody took away as a bundle (.rift.zip) can be looked at here: numbers, plots, predictions. It is "
    "read-only; nothing in it is run."
)
# Buttons within a table are no components: this listens to all of them and tells one component what was asked. An address is
# copied here too; where the browser has no clipboard for this page it is selected in a field, to be copied by hand.
# A search shows the rows whose text holds every word; the page does that by itself, since it has them all, also after a redraw.
LISTEN = """
if (!window.riftListens) {
  window.riftListens = true;
  document.addEventListener('click', event => {
    const button = event.target.closest('[data-keep], [data-copy]');
    if (!button) return;
    if (button.dataset.keep) { props.value = button.dataset.keep; trigger('click'); return; }
    const address = location.origin + location.pathname.replace(/\\/?$/, '/') + button.dataset.copy;
    const said = button.textContent;
    const tell = text => { button.textContent = text; setTimeout(() => { button.textContent = said; }, 2000); };
    const byHand = () => window.prompt('Copy this link', address);
    if (navigator.clipboard) navigator.clipboard.writeText(address).then(() => tell('Copied'), byHand); else byHand();
  });
  const find = '#history-search input, #history-search textarea';
  const filter = () => {
    const words = (document.querySelector(find)?.value || '').toLowerCase().split(/\\s+/).filter(Boolean);
    const rows = [...document.querySelectorAll('#history tbody tr')], count = document.querySelector('#history .found');
    for (const row of rows) row.hidden = !words.every(word => row.dataset.text.includes(word));
    const left = rows.filter(row => !row.hidden).length;
    const said = words.length ? `${left} of ${rows.length}` : `${rows.length} in all`;
    if (count && count.textContent !== said) count.textContent = said;
  };
  document.addEventListener('input', event => { if (event.target.matches(find)) filter(); });
  const watch = () => {
    const table = document.querySelector('#history');
    if (table) new MutationObserver(filter).observe(table, {childList: true, subtree: true}); else setTimeout(watch, 200);
  };
  watch();
}
"""
FOCUS = """() => setTimeout(() => {
  const places = document.querySelectorAll('#history-rename input, #history-rename textarea, #keep-it');
  [...places].find(one => one.offsetParent)?.focus();
}, 150)"""


class History:
    """The sub-tab; `asked` is told by every `data-keep` button of the page, and `acts` says what each first word means."""

    def __init__(self, app: App):
        self.app = app
        self.acts: dict[str, tuple[Callable[..., Any], list[Any]]] = {}
        gr.HTML(html('<div class="rift"><h2>All comparisons</h2><p class="about">{about}</p></div>', about=ABOUT))
        gr.Textbox(label="Search", placeholder="a name, images, an arm, a state, a date", elem_id="history-search")
        with gr.Row(visible=False, elem_id="history-rename") as self.rename_row:
            self.name = gr.Textbox(label="New name", info="empty: the name it came with", max_lines=1, scale=4, min_width=300)
            save = gr.Button("Save", variant="primary", scale=0, min_width=120, elem_id="save-name")
            keep_name = gr.Button("Leave it", scale=0, min_width=120)
        with gr.Column(visible=False, elem_id="history-sure") as self.sure_row:
            self.question = gr.HTML()
            with gr.Row():
                sure = gr.Button("Delete", variant="stop", scale=0, min_width=120, elem_id="sure-delete")
                keep = gr.Button("Keep it", scale=0, min_width=120, elem_id="keep-it")
        self.table = gr.HTML(elem_id="history")
        self.asked = gr.HTML("", js_on_load=LISTEN, elem_id="keep-asked")
        self.about = gr.State("")  # the comparison that is renamed or deleted
        self.rows = [self.rename_row, self.name, self.sure_row, self.question, self.about]
        self._differences()
        with gr.Accordion("Open a bundle", open=False, elem_id="open-bundle"):
            gr.HTML(html('<p class="rift about">{text}</p>', text=BUNDLE))
            self.file = gr.File(label="Drop a bundle", height=110, elem_id="bundle")
            self.trouble = gr.HTML(elem_id="bundle-problem")
        self.outputs = [app.memory, app.tabs, self.table, *self.rows]
        acted = self.asked.click(told(self._act), [self.asked, app.memory], self.outputs, **PRIVATE)
        acted.then(None, None, None, js=FOCUS)
        for event in (save.click, self.name.submit):
            event(told(self._rename), [self.about, self.name, app.memory], self.outputs, **PRIVATE)
        sure.click(told(self._delete), [self.about, app.memory], self.outputs, **PRIVATE)
        gr.on([keep.click, keep_name.click], lambda: [*self._quiet()], None, self.rows, **PRIVATE)
        busy = {**PRIVATE, "show_progress": "full", "show_progress_on": self.trouble}
        self.file.upload(self._open, [self.file, app.memory], [self.file, self.trouble, *self.outputs], **busy)
        for event in (app.tab.select, app.ready.change):
            event(self.draw, app.memory, [self.table, *self.picks], **PRIVATE)

    def draw(self, memory: dict[str, str]) -> list[Any]:
        """Return the table and what can be chosen to see how two differ."""
        found = history.entries(self.app.labs)
        names = [(f"{one.title}, {naming.when(one.created)}", one.key) for one in found]
        both = [gr.Dropdown(names), gr.Dropdown(names)]
        return [self._table(found, memory), *both]

    def _table(self, found: list[Entry], memory: dict[str, str]) -> Markup:
        here = self.app.shown(memory)
        rows = Markup("").join(_row(one, here is not None and one.key == here.key) for one in found)
        heads = join('<th scope="col" class="less">{name}</th>', [{"name": name} for name in HEADS])
        return html(
            '<div class="rift"><p class="found" role="status">{n} in all</p><div class="scroll" tabindex="0" role="region" '
            'aria-label="Comparisons"><table class="history"><thead><tr><th scope="col">Comparison</th>'
            '<th scope="col">State</th><th scope="col" class="less">Arms</th>{heads}'
            '<th scope="col"><span class="unseen">What to do</span></th></tr></thead><tbody>{rows}</tbody></table></div></div>',
            n=len(found),
            heads=heads,
            rows=rows,
        )

    def _act(self, asked: str, memory: dict[str, str]) -> list[Any]:
        """Do what a button of the table, or of the Compare tab, asks for."""
        verb, _, key = str(asked or "").partition(" ")
        quiet = [gr.skip()] * len(self.rows)
        if verb == "history":
            return [gr.skip(), gr.Tabs(selected="keep"), gr.skip(), *quiet]
        home, name = self._place(key)
        if verb == "open":
            return [{**memory, "comparison": key}, gr.Tabs(selected="compare"), gr.skip(), *self._quiet()]
        if verb in ("pin", "unpin"):
            naming.pin(self.app.labs[home], name, verb == "pin")
            return [gr.skip(), gr.skip(), self._fresh(memory), *quiet]
        if verb == "rename":
            shown = [gr.Row(visible=True), naming.label_of(self.app.labs[home], name).name, gr.Column(visible=False), "", key]
            return [gr.skip(), gr.skip(), gr.skip(), *shown]
        question = html(
            '<div class="rift problem" role="alert"><b>Sure? “{title}” will be deleted.</b> {what}</div>',
            title=naming.title(self.app.labs[home], name),
            what=self._going(home, name),
        )
        return [gr.skip(), gr.skip(), gr.skip(), gr.Row(visible=False), "", gr.Column(visible=True), question, key]

    def _going(self, home: str, name: str) -> str:
        if home != "lab":
            return "It leaves this list; the file that it was opened from is untouched."
        links = sum((share.home, share.comparison) == (home, name) for share in sharing.shares(self.app.lab))
        ends = f" {links} shared link{'s' if links > 1 else ''} to it end{'' if links > 1 else 's'}." if links else ""
        return history.deletion(self.app.lab, name).sentence + ends

    def _rename(self, key: str, text: str, memory: dict[str, str]) -> list[Any]:
        home, name = self._place(key)
        naming.rename(self.app.labs[home], name, text or "")
        return [gr.skip(), gr.skip(), self._fresh(memory), *self._quiet()]

    def _delete(self, key: str, memory: dict[str, str]) -> list[Any]:
        home, name = self._place(key)
        sharing.revoke_all(self.app.lab, home, name)
        if home == "lab":
            history.delete(self.app.lab, name)
            self.app.made.forget()
        else:
            bundle.close(self.app.lab, home)
        memory = {**memory, "comparison": "" if memory.get("comparison") == key else memory.get("comparison", "")}
        return [memory, gr.skip(), self._fresh(memory), *self._quiet()]

    def _open(self, path: str | None, memory: dict[str, str]) -> list[Any]:
        """Take a bundle in and out of Gradio's cache, and show it."""
        if not path:
            return [gr.skip()] * (2 + len(self.outputs))
        try:
            home, name = bundle.open_(self.app.door(), Path(path))
        except UserError as error:
            return [None, problem(error), *[gr.skip()] * len(self.outputs)]
        finally:
            Path(path).unlink(missing_ok=True)
        memory = {**memory, "comparison": f"{home}/{name}"}
        said = html(
            '<p class="rift about" role="status">Opened, read-only: <b>{title}</b>. It is in the list above.</p>',
            title=naming.title(self.app.labs[home], name),
        )
        return [None, said, memory, gr.skip(), self._fresh(memory), *self._quiet()]

    def _place(self, key: str) -> tuple[str, str]:
        """Return home and id of a comparison that may be changed; the page's own words are not believed."""
        home, _, name = key.partition("/")
        if home not in self.app.labs:
            raise RunError("run.missing", "This comparison is no longer there; it may have been deleted.")
        return home, name

    def _fresh(self, memory: dict[str, str]) -> Markup:
        return self._table(history.entries(self.app.labs), memory)

    def _quiet(self) -> list[Any]:
        return [gr.Row(visible=False), "", gr.Column(visible=False), "", ""]

    def _differences(self) -> None:
        """Let two comparisons, or a run of each, be chosen and show the settings in which they differ."""
        with gr.Accordion("What differs between two", open=False, elem_id="differs"):
            sides = []
            with gr.Row():
                for side in ("first", "second"):
                    with gr.Column(min_width=320):
                        pick = gr.Dropdown([], value=None, label=f"The {side} one", elem_id=f"differ-{side}")
                        run = gr.Dropdown([("the whole comparison", "")], value="", label="Of it", elem_id=f"differ-run-{side}")
                        sides.append((pick, run))
            found = gr.HTML(elem_id="differences")
        self.picks = [pick for pick, _ in sides]
        inputs = [component for side in sides for component in side]
        for pick, run in sides:  # one after the other, see `App.remembered`
            pick.change(told(self._runs), pick, run, **PRIVATE).then(told(self._differ), inputs, found, **PRIVATE)
            run.change(told(self._differ), inputs, found, **PRIVATE)

    def _runs(self, key: str | None) -> Any:
        names = {}
        if key:
            home, name = self._place(key)
            names = history.runs(self.app.labs[home], name)
        return gr.Dropdown([("the whole comparison", ""), *names.items()], value="")

    def _differ(self, first: str | None, run: str | None, second: str | None, other: str | None) -> Markup:
        if not first or not second:
            return Markup("")
        documents = []
        for key, one in ((first, run), (second, other)):
            home, name = self._place(key)
            known = history.runs(self.app.labs[home], name).values()
            documents.append(history.settings(self.app.labs[home], name, one if one and one in known else ""))
        rows = history.differ(*documents)
        if not rows:
            return html('<p class="rift about" role="status">Their settings are the same.</p>')
        cells = [{"name": name.replace("_", " "), "a": _number(a), "b": _number(b)} for name, a, b in rows]
        return html(
            '<div class="rift"><div class="scroll"><table class="plain"><thead><tr><th scope="col">Setting</th>'
            '<th scope="col">First</th><th scope="col">Second</th></tr></thead><tbody>{rows}</tbody></table></div></div>',
            rows=join('<tr><th scope="row">{name}</th><td>{a}</td><td>{b}</td></tr>', cells),
        )


def _number(text: str) -> str:
    try:
        return f"{float(text):g}"
    except ValueError:
        return text


def _row(one: Entry, here: bool) -> Markup:
    shown, more = one.arms[:MOST_ARMS], len(one.arms) - MOST_ARMS
    lines = [{"name": name, "numbers": numbers} for name, numbers in shown]
    numbers = Markup("").join(
        html(
            '<td class="less lines">{cells}</td>',
            cells=join("<span>{value}</span>", [{"value": _value(line, at)} for line in lines]),
        )
        for at in range(len(HEADS))
    )
    own = one.home != "example"
    acts: list[dict[str, Any]] = [{"verb": "open", "word": "Open"}]
    if own:
        acts += [{"verb": "unpin" if one.pinned else "pin", "word": "Unpin" if one.pinned else "Pin"}]
        acts += [{"verb": "rename", "word": "Rename"}, {"verb": "delete", "word": "Delete" if one.home == "lab" else "Close"}]
    kind = {"lab": "", "example": "the example"}.get(one.home, "opened, read-only")
    marks = [word for word in ("pinned" if one.pinned else "", kind, "on show" if here else "") if word]
    about = ", ".join(
        [
            *([] if one.images in one.title else [one.images]),
            f"{one.seeds} seeds" if one.seeds > 1 else "1 seed",
            naming.when(one.created),
        ]
    )
    return html(
        '<tr data-text="{text}"{current}><th scope="row">{title}<small>{about}</small>{marks}</th><td>{state}</td>'
        '<td class="less lines">{arms}</td>{numbers}<td class="acts">{acts}</td></tr>',
        text=f"{one.text} {WORDS[one.state].casefold()} {' '.join(marks)}",
        current=Markup(' aria-current="true"') if here else "",
        title=one.title,
        about=about,
        marks=join('<span class="mark">{word}</span>', [{"word": word} for word in marks]),
        state=WORDS[one.state],
        arms=join("<span>{name}</span>", lines) + (html("<span>and {n} more</span>", n=more) if more > 0 else ""),
        numbers=numbers,
        acts=join(
            '<button type="button" data-keep="{verb} {key}" aria-label="{word} {title}">{word}</button>',
            [{**act, "key": one.key, "title": one.title} for act in acts],
        ),
    )


def _value(line: dict[str, Any], at: int) -> str:
    values = list(line["numbers"].values())
    return "–" if at >= len(values) or values[at] is None else report.number(values[at])
