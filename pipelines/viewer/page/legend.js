// The legend: the ids that the panes show, with names and colours; a click hides one, a click with Ctrl or Alt all others.

import { count, fill, h } from "./dom.js";
import * as state from "./model.js";

const { model } = state;

/** What is on the right. */
export class Legend {
  constructor() {
    this.element = h("aside.legend", { "aria-label": "legend" });
    this.made = "";
  }

  /** @param {import("./panes.js").Pane[]} panes */
  update(panes) {
    const found = gather(panes);
    const active = gather(panes.filter((pane) => pane.number === model.active));
    const hidden = Object.entries(model.hidden).map(([name, ids]) => [name, [...ids]]);
    const key = JSON.stringify([[...found].map(([name, entries]) => [name, [...entries.values()]]), [...active.keys()], hidden]);
    if (key === this.made) return;
    this.made = key;
    this.element.hidden = !found.size;
    fill(this.element, [...found].map(([name, entries]) => this.makeList(name, entries, active.get(name))));
  }

  makeList(name, entries, counted) {
    const hidden = model.hidden[name] ?? new Set();
    const rows = [...entries.values()].sort((a, b) => a.id - b.id);
    const all = h("button.link", { onclick: () => state.change({ hidden: { ...model.hidden, [name]: new Set() } }) }, "show all");
    const lines = rows.map((entry) => this.makeRow(name, entry, counted?.get(entry.id)?.count, hidden, rows));
    return h("section", {}, h("h2", {}, name, hidden.size ? all : null), h("ul", {}, lines));
  }

  makeRow(name, { id, name: text, color }, amount, hidden, rows) {
    const others = () => new Set(rows.map((row) => row.id).filter((other) => other !== id));
    const onclick = (event) =>
      event.altKey || event.ctrlKey || event.metaKey
        ? state.change({ hidden: { ...model.hidden, [name]: others() } })
        : state.toggleId(name, id);
    const swatch = h("i.swatch", { style: { background: `rgb(${color.join(",")})` } });
    const title = "click: hide or show; with Ctrl or Alt: this one alone";
    return h(
      "li",
      {},
      h(
        "button.row",
        { onclick, title, "aria-pressed": String(!hidden.has(id)), data: { ids: name, id } },
        swatch,
        h("span.clip", {}, text === String(id) ? text : `${id} ${text}`),
        h("span.amount", {}, amount === undefined ? "" : count(amount)),
      ),
    );
  }
}

/** The ids of a pane as [name, entries]: those it is coloured by, else the first that it has; and all of which some are hidden. */
function legendsOf({ frame, mode }) {
  const { legends = {}, ids, legend } = frame?.header ?? {};
  if (ids) return [[ids, legend]];
  const chosen = mode in legends ? mode : Object.keys(legends)[0];
  return Object.entries(legends).filter(([name]) => name === chosen || model.hidden[name]?.size);
}

/** Name of ids -> id -> entry, of all that these panes show. */
function gather(panes) {
  const found = new Map();
  for (const pane of panes) {
    for (const [name, entries] of legendsOf(pane)) {
      const known = found.get(name) ?? new Map();
      for (const entry of entries) if (!known.has(entry.id)) known.set(entry.id, entry);
      found.set(name, known);
    }
  }
  return found;
}
