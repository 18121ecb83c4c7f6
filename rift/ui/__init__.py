"""The web app over a lab folder: header, status bar, one tab for each file of `tabs/`. It computes nothing itself."""

from __future__ import annotations

import importlib
import os
import pkgutil
import socket
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from rift import __version__, archive, cage, example, lending, standby, visitors
from rift.errors import SettingError
from rift.runs import Lab
from rift.ui import endpoints, fresh, front, guard, hosted, session, state, tabs, visit
from rift.ui.files import Files
from rift.ui.state import REMEMBERED, App
from rift.visitors import Everyone, Labs

ASSETS = Path(__file__).parents[2] / "assets"
MOST_SESSIONS = 500  # whose state is remembered
MOST_WAITING = 256  # events; beyond it a page is told that the server is busy
OPEN_DOOR = (
    "warning: RIFT Lab has no password, and listening on {host} it answers whoever reaches this machine: they see every image "
    "and run of the lab, can change and delete them. Use 127.0.0.1, or put a door with a password in front (see RIFT_HOSTS)."
)
TITLE = """
<header class="rift head"><h1>RIFT Lab</h1><p>Finetune a Vision Transformer on your images with and without RIFT,
and see what it learns and what it forgets.</p><p class="warn">Research demo, not for diagnosis</p></header>
"""


def build(lab: Lab, device: str = "auto", public: bool = False, apart: bool = False) -> tuple[gr.Blocks, Files]:
    """Return the page over a lab and the files it serves.

    Where it is `public`, nothing in it names a file of this machine; where visitors are kept `apart`, each has a lab in that lab.
    """
    shown = example.place(lab.root / "example")
    labs = Everyone(lab.root, shown, visit.who) if apart else Labs(lab, shown)
    files = Files(labs, lab)
    with session.page(title="RIFT Lab", analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
        memory = gr.BrowserState(dict(REMEMBERED), storage_key="rift-lab", secret="rift-lab-1")
        ready = gr.State("")  # not among the tabs, whose places are counted
        gr.HTML(TITLE)
        bar = gr.Row(elem_id="status-row")
        with gr.Tabs(selected="data", elem_id="tabs", overflow_behavior="wrap") as bar_of_tabs:
            app = App(labs, files, device, blocks, memory, bar_of_tabs, ready, public)
            for name, module in pages():
                with gr.Tab(module.TITLE, id=name, elem_id=f"tab-{name}", render_children=True) as app.tab:
                    module.build(app)
        with bar:
            state.connect(app)
        endpoints.build(app)
        hosted.build(app)
        gr.HTML(f'<footer class="rift foot">RIFT Lab {__version__} · research demo, not for clinical use</footer>')
    return blocks, files


def pages() -> list[tuple[str, ModuleType]]:
    """Return the tabs in their order."""
    found = [(one.name, importlib.import_module(f"rift.ui.tabs.{one.name}")) for one in pkgutil.iter_modules(tabs.__path__)]
    return sorted(found, key=lambda pair: pair[1].ORDER)


def serve(root: Path, host: str, port: int, device: str = "auto", apart: bool = False, stand_by: bool = False) -> gr.Blocks:
    """Serve the page, print its address when it answers, and return; port 0 takes a free one, `setting.range` one that is taken.

    With `stand_by` a worker is ready before anybody presses Start.
    """
    public = apart or not guard.is_loopback(host)
    fresh.begin()
    session.begin()
    lab = Lab(root)
    cage.warm()
    blocks, files = build(lab, device, public, apart)
    visitors.keep_house(lab.root, device)
    blocks.queue(max_size=MOST_WAITING, default_concurrency_limit=4, api_open=False)
    limits = archive.PUBLIC if apart else archive.LOCAL
    if public and not apart:
        print(OPEN_DOOR.format(host=host), file=sys.stderr, flush=True)
    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port or _free_port(host),
            quiet=True,
            prevent_thread_lock=True,
            share=False,
            run_history=False,
            enable_monitoring=False,
            show_error=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            strict_cors=True,
            footer_links=[],
            allowed_paths=[],
            state_session_capacity=MOST_SESSIONS,
            max_file_size=limits.upload_bytes,
            blocked_paths=[str(lab.root.resolve())],
            theme=_theme(),
            head=f"<style>{(ASSETS / 'app.css').read_text()}</style>{visit.KEY if apart else ''}{_early()}",
            app_kwargs=_app(files, host, limits, apart),
        )
    except OSError as error:
        raise SettingError("setting.range", f"The port {port} of {host} cannot be used: {error}") from None
    print(address, flush=True)
    if stand_by and not lending.active():
        standby.keep(lab.root.resolve(), device)
    return blocks


def _app(files: Files, host: str, limits: archive.Limits, apart: bool) -> dict[str, Any]:
    """Return what FastAPI is made with: our own addresses, the guard before all of them, and no pages that describe it."""
    named = {one.strip().lower() for one in os.environ.get("RIFT_HOSTS", "").split(",") if one.strip()}
    rules = guard.Rules(limits.upload_bytes, hosts=frozenset(named | guard.LOOPBACK if named or guard.is_loopback(host) else ()))
    if hosted.on_spaces():  # each visitor has an address of their own there, and the machine is small
        rules = guard.public(limits.upload_bytes)
    rules = replace(rules, sessions=visit.SESSIONS if apart else None)
    off = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    return {"routes": files.routes(), "middleware": [Middleware(guard.Guard, rules=rules), Middleware(front.Front)], **off}


def _early() -> str:
    """Return a script that fetches what draws figures once the page is full and idle, or nothing where Gradio has it elsewhere.

    It is 4.6 MB, which Gradio fetches with the first figure: whoever opened that one waited a second longer than for the others.
    """
    drawing = sorted((Path(gr.__file__).parent / "templates" / "frontend" / "assets").glob("PlotlyPlot-*.js"))
    if len(drawing) != 1:
        return ""
    fetch = f"import(new URL('assets/{drawing[0].name}', document.baseURI)).catch(() => {{}})"
    wait = f"document.querySelector('#status .state') ? requestIdleCallback(() => {fetch}) : setTimeout(look, 300)"
    return f"<script type='module'>const look = () => {wait}; window.requestIdleCallback && look()</script>"


def _free_port(host: str) -> int:
    with socket.socket() as one:
        one.bind((host, 0))
        return int(one.getsockname()[1])


def _theme() -> gr.themes.Base:
    """Return a calm theme of names that every system has: nothing is fetched from a font server."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
    mono = ["ui-monospace", "SF Mono", "Menlo", "Consolas", "monospace"]
    theme = gr.themes.Base(primary_hue="blue", neutral_hue="slate", radius_size="md", font=fonts, font_mono=mono)
    return theme.set(  # Gradio's own light shades are below the contrast of 4.5 that text needs
        color_accent="*primary_600",
        body_text_color_subdued="*neutral_500",
        checkbox_border_color="*neutral_500",  # an empty box is seen by its edge alone
        checkbox_border_color_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )
