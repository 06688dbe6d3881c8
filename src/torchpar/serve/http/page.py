"""GET /: what is served, a form to try it, and how busy it is. One page without a framework.

Without JavaScript the form works and the numbers are those of the moment; with it they go on, and answers appear beside
the form.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from torchpar.serve.engine.metadata import READY, ModelMetadata
from torchpar.serve.http.exchange import HTML, Exchange
from torchpar.serve.http.metrics import mean_and_percentile
from torchpar.serve.protocol.service import Service
from torchpar.serve.tensors import TensorSpec

if TYPE_CHECKING:
    from torchpar.serve.http.state import ServerState

# An example of more numbers than this is no help to a reader.
EXAMPLE_LIMIT = 4096

STYLE = """
:root { color-scheme: light dark; --line: #8884; --dim: #777; --good: #1a7f37; --bad: #c62828; --box: #8881 }
@media (prefers-color-scheme: dark) { :root { --dim: #aaa; --good: #4cc26a; --bad: #ff6b6b } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1.5rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.2rem; margin: 0 }
header p { color: var(--dim); margin: .2rem 0 1.5rem }
section { border: 1px solid var(--line); border-radius: .6rem; padding: 1rem 1.2rem; margin-bottom: 1.2rem }
section > header { display: flex; gap: .8rem; align-items: baseline; flex-wrap: wrap }
.state { color: var(--bad) } .state.READY { color: var(--good) }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.5rem, 1fr)); gap: .6rem; margin: 1rem 0 }
dl div { background: var(--box); border-radius: .4rem; padding: .4rem .7rem }
dt { color: var(--dim); font-size: .8rem } dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums }
.specs { color: var(--dim); margin: .3rem 0 } code, textarea, pre { font: 14px/1.45 ui-monospace, monospace }
label { display: block; margin-bottom: .3rem }
textarea { width: 100%; box-sizing: border-box; min-height: 5.5rem; padding: .5rem; border-radius: .4rem;
  border: 1px solid var(--line) }
button { font: inherit; padding: .3rem 1.2rem; margin-top: .4rem; border-radius: .4rem; border: 1px solid var(--line);
  cursor: pointer }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--box); border-radius: .4rem; padding: .6rem;
  max-height: 20rem; overflow: auto; margin: .7rem 0 0 }
pre.error { color: var(--bad) }
"""

SCRIPT = """
"use strict";
const cell = (model, name) => document.querySelector(`[data-model="${CSS.escape(model)}"] [data-value="${name}"]`);
async function refresh() {
  try {
    const models = (await (await fetch("/state")).json()).models;
    for (const model of models)
      for (const [name, value] of Object.entries(model.shown)) {
        const place = cell(model.name, name);
        if (place && place.textContent !== value) place.textContent = value;
      }
  } catch (error) { /* The server is being restarted: the next try will tell. */ }
  setTimeout(refresh, 1000);
}
for (const form of document.forms)
  form.addEventListener("submit", async event => {
    event.preventDefault();
    const place = form.querySelector("output");
    const pre = document.createElement("pre");
    const start = performance.now();
    try {
      const reply = await fetch(form.action, {method: "POST", body: form.elements.input.value,
        headers: {"Content-Type": "application/json"}});
      const text = await reply.text();  // as it is: numbers of JavaScript are exact up to 2 ** 53 only
      const took = (performance.now() - start).toFixed(1);
      pre.textContent = reply.ok ? text + "\\n" + took + " ms" : JSON.parse(text).error;
      if (!reply.ok) pre.className = "error";
    } catch (error) { pre.textContent = String(error); pre.className = "error"; }
    place.replaceChildren(pre);
  });
refresh();
"""


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# Nothing but what is in this file may run or be loaded.
POLICY = (
    "Content-Security-Policy: default-src 'none'; connect-src 'self'; form-action 'self'; frame-ancestors 'none';"
    f" style-src 'sha256-{_hash(STYLE)}'; script-src 'sha256-{_hash(SCRIPT)}'"
).encode()


class Page:
    """Renders the page, and its numbers as JSON."""

    def __init__(self, service: Service, state: ServerState) -> None:
        self._service = service
        self._state = state

    def __call__(self, exchange: Exchange) -> None:
        """Answers with the page."""
        exchange.respond(200, HTML, self.render().encode(), POLICY, b"Cache-Control: no-store")

    def state(self) -> dict[str, Any]:
        """Returns the numbers of every served model; `shown` is what the page has in their places."""
        models = []
        for name, version, statistics, waiting in self._service.engine.counters():
            _, half = mean_and_percentile(statistics.total_seconds, 0.5)
            _, most = mean_and_percentile(statistics.total_seconds, 0.99)
            rows, _ = mean_and_percentile(statistics.batch_rows, 0.5)
            failed = sum(statistics.failed.values())
            models.append(
                {
                    "name": name,
                    "version": version,
                    "shown": {
                        "waiting": str(waiting),
                        "answered": str(statistics.success[0]),
                        "failed": str(failed),
                        "rows": "–" if rows is None else f"{rows:.1f}",
                        "half": _milliseconds(half),
                        "most": _milliseconds(most),
                    },
                }
            )
        return {"models": models, "connections": int(self._state.usage_of_all()["connections"])}

    def render(self) -> str:
        """Renders the page as HTML."""
        server = self._service.server()
        shown = {model["name"]: model["shown"] for model in self.state()["models"]}
        ended = {served.name for served in self._service.engine.unbatched().values()}
        sections = []
        seen: set[str] = set()
        for entry in sorted(self._service.engine.index(), key=lambda entry: entry.state != READY):
            if entry.name not in seen:
                seen.add(entry.name)
                model = self._service.engine.metadata(entry.name, "") if entry.state == READY else None
                sections.append(
                    _section(
                        entry.name, entry.state, entry.reason, model, shown.get(entry.name, {}), entry.name in ended
                    )
                )
        return (
            f"<!doctype html><html lang=en><meta charset=utf-8><title>torchpar</title><style>{STYLE}</style>"
            "<meta name=viewport content='width=device-width'>"
            f"<header><h1>torchpar</h1><p>version {html.escape(server['version'])} · "
            "<a href=/metrics>metrics</a> · <a href=/v2>protocol v2</a> · <a href=/v2/models/stats>statistics</a></p>"
            f"</header>{''.join(sections) or '<p>No model is declared.'}<script>{SCRIPT}</script>"
        )


_VALUES = (
    ("waiting", "waiting"),
    ("answered", "answered"),
    ("failed", "not answered"),
    ("rows", "rows a batch"),
    ("half", "half within"),
    ("most", "99 % within"),
)


def _section(
    name: str, state: str, reason: str, model: ModelMetadata | None, shown: dict[str, str], ended: bool
) -> str:
    shown_name = html.escape(name)
    parts = [
        f'<section data-model="{shown_name}"><header><h2>{shown_name}</h2>'
        f'<span class="state {html.escape(state)}">{html.escape(state)}</span>'
        f"<span>{html.escape(model.platform if model else reason)}</span></header>"
    ]
    if model is not None:
        parts.append(
            f"<p class=specs>in {', '.join(map(_spec, model.inputs))}<br>out {', '.join(map(_spec, model.outputs))}</p>"
        )
        if ended:
            parts.append(
                "<p class=state>answers one request at a time, as in a batch an answer was another: see the log"
            )
        parts.append("<dl>")
        for key, label in _VALUES:
            parts.append(f'<div><dt>{label}<dd data-value="{key}">{html.escape(shown.get(key, "–"))}</div>')
        parts.append("</dl>")
        action = "/predict/" + quote(name, safe="")
        example = html.escape(json.dumps(example_of(model)))
        parts.append(
            f'<form method=post action="{action}"><label for="input-{shown_name}">Try it: JSON in</label>'
            f'<textarea id="input-{shown_name}" name=input spellcheck=false>{example}</textarea>'
            "<br><button>Predict</button><output></output></form>"
        )
    parts.append("</section>")
    return "".join(parts)


def _spec(spec: TensorSpec) -> str:
    sizes = " × ".join("n" if size == -1 else str(size) for size in spec.shape)
    return f"<code>{html.escape(spec.name)}</code> {html.escape(spec.datatype)} [{sizes}]"


def example_of(model: ModelMetadata) -> Any:
    """Makes a value that /predict takes: one row of zeros, or of texts."""
    shapes = {spec: spec.shape[1:] if spec.shape[:1] == (-1,) else spec.shape for spec in model.inputs}
    values = {spec.name: _zeros(spec, shape) for spec, shape in shapes.items()}
    return values if len(values) != 1 else next(iter(values.values()))


def _zeros(spec: TensorSpec, shape: tuple[int, ...]) -> Any:
    sizes = [max(size, 1) for size in shape]
    count = 1
    for size in sizes:
        count *= size
    zero: Any = {"BYTES": "text", "BOOL": False}.get(spec.datatype, 0)
    if count > EXAMPLE_LIMIT:
        return []
    for size in reversed(sizes):
        zero = [zero] * size
    return zero


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1000:g} ms"
