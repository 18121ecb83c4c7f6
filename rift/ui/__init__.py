"""The web app over a lab folder: header, status bar, one tab for each file of `tabs/`. It computes nothing itself."""

from __future__ import annotations

import importlib
import pkgutil
import socket
from pathlib import Path
from types import ModuleType

import gradio as gr

from rift import __version__, bundle, cage, example
from rift.errors import SettingError
from rift.runs import Lab
from rift.ui import endpoints, hosted, state, tabs
from rift.ui.files import Files
from rift.ui.state import REMEMBERED, App

ASSETS = Path(__file__).parents[2] / "assets"
HEADER = """
<header class="rift head"><h1>RIFT Lab</h1><p>Finetune a Vision Transformer on your images with and without RIFT,
and see what it learns and what it forgets.</p><p class="warn">Research demo, not for diagnosis</p></header>
"""


def build(lab: Lab, device: str = "auto") -> tuple[gr.Blocks, Files]:
    """Return the page over a lab and the files it serves."""
    labs = bundle.Labs(lab, example.place(lab.root / "example"))
    files = Files(labs, lab)
    with gr.Blocks(title="RIFT Lab", analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
        memory = gr.BrowserState(dict(REMEMBERED), storage_key="rift-lab", secret="rift-lab-1")
        ready = gr.State("")  # not among the tabs, whose places are counted
        gr.HTML(HEADER)
        bar = gr.Row(elem_id="status-row")
        with gr.Tabs(selected="data", elem_id="tabs", overflow_behavior="wrap") as bar_of_tabs:
            app = App(labs, files, device, blocks, memory, bar_of_tabs, ready)
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


def serve(root: Path, host: str, port: int, device: str = "auto", block: bool = True) -> gr.Blocks:
    """Serve the page and print its address when it answers; port 0 takes a free one, `setting.range` for one that is taken."""
    lab = Lab(root)
    cage.warm()
    blocks, files = build(lab, device)
    blocks.queue(default_concurrency_limit=4, api_open=False)
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
            pwa=False,
            strict_cors=True,
            footer_links=[],
            max_file_size="500mb",
            blocked_paths=[str(lab.root.resolve())],
            theme=_theme(),
            head=f"<style>{(ASSETS / 'app.css').read_text()}</style>{_early()}",
            app_kwargs={"routes": files.routes(), "docs_url": None, "redoc_url": None, "openapi_url": None},
        )
    except OSError as error:
        raise SettingError("setting.range", f"The port {port} of {host} cannot be used: {error}") from None
    print(address, flush=True)
    if block:
        blocks.block_thread()
    return blocks


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
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )
