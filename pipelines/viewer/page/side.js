// What is on the left: what there is to choose from, and what is known of what was chosen.

import { getJson } from "./api.js";
import { choice, count, fill, h } from "./dom.js";
import * as state from "./model.js";

const { model } = state;
const PAGE = 100;
const SEVERITIES = ["error", "warning", "info"];

/** The tabs of the left side, those for which there is something. */
function tabs() {
  const roots = model.index?.roots ?? [];
  return [
    state.sampledRoots().length ? "samples" : "",
    roots.some((root) => root.kind === "store") ? "findings" : "",
    roots.some((root) => root.kind === "tables") ? "metrics" : "",
    state.logRoots().length ? "logs" : "",
  ].filter(Boolean);
}

export class Side {
  /** @param {(key: string, field?: string) => void} onSample a sample was chosen, maybe for one of its fields */
  constructor(onSample) {
    this.onSample = onSample;
    this.bar = h("nav.tabs", { role: "tablist" });
    this.list = h("div.list");
    this.detail = h("div.detail");
    this.find = h("input.find", { type: "search", placeholder: "find", "aria-label": "find", oninput: () => this.ask(0) });
    this.filters = h("span.filters");
    this.pages = h("span.pages");
    this.tools = h("div.tools", {}, this.find, this.filters);
    this.chosen = { root: "", split: "", severity: "", run: "" };
    this.rows = [];
    this.element = h("aside.side", { "aria-label": "what there is" }, this.bar, this.tools, this.list, this.pages, this.detail);
  }

  get tab() {
    return tabs().includes(model.tab) ? model.tab : (tabs()[0] ?? "");
  }

  update(names) {
    if (!model.index) return;
    if (names.has("index") || names.has("tab")) {
      fill(this.bar, tabs().map((tab) => this.makeTab(tab)));
      this.makeFilters();
      this.ask(this.start ?? 0);
    }
    if (names.has("sample") || names.has("index") || names.has("tab")) this.makeDetail();
    if (names.has("sample")) this.mark();
    if (this.tab === "logs" && (names.has("panes") || names.has("active"))) this.makeLogs();
  }

  makeTab(tab) {
    const isOn = tab === this.tab;
    const onclick = () => {
      this.find.value = "";
      this.start = 0;
      state.change({ tab });
    };
    return h("button", { role: "tab", "aria-selected": String(isOn), onclick }, tab);
  }

  makeFilters() {
    this.tools.hidden = this.tab === "logs";
    this.find.hidden = this.tab === "metrics";
    const groups = { samples: () => this.splits(), findings: () => this.severities(), metrics: () => this.runs() }[this.tab]?.();
    fill(this.filters, groups ?? []);
  }

  splits() {
    const roots = state.sampledRoots();
    const root = this.sampled;
    const splits = Object.entries(root.splits ?? {}).map(([name, samples]) => [name, `${name} (${count(samples)})`]);
    const names = roots.map(({ name, samples }) => [name, `${name} (${count(samples)})`]);
    return [
      roots.length > 1 ? this.filter("root", names) : null,
      splits.length ? this.filter("split", [["", "all splits"], ...splits]) : null,
    ].filter(Boolean);
  }

  /** The store, or else the predictions, whose samples are listed. */
  get sampled() {
    const roots = state.sampledRoots();
    return roots.find((root) => root.name === this.chosen.root) ?? roots.find((root) => root.kind === "store") ?? roots[0];
  }

  get stores() {
    return model.index.roots.filter((root) => root.kind === "store");
  }

  /** The store whose findings are listed. */
  get store() {
    return this.stores.find((root) => root.name === this.chosen.root) ?? this.stores[0];
  }

  severities() {
    const { findings } = this.store;
    const found = SEVERITIES.filter((name) => findings[name]);
    return [
      this.stores.length > 1 ? this.filter("root", this.stores.map(({ name }) => [name, name])) : null,
      this.filter("severity", [["", "all severities"], ...found.map((name) => [name, `${name} (${count(findings[name])})`])]),
    ].filter(Boolean);
  }

  runs() {
    const options = this.runRows().map((run) => [runName(run), `${run.model} · ${run.metric} · ${run.rule}${place(run)}: ${percent(run.quality)} on ${count(run.samples)}`]);
    return [this.filter("run", options)];
  }

  runRows() {
    const tables = model.index.roots.filter((root) => root.kind === "tables");
    return tables.flatMap((root) => root.runs.map((run) => ({ ...run, root: root.name })));
  }

  filter(name, options) {
    return choice(name, [{ group: "", options }], this.chosen[name], (value) => {
      this.chosen[name] = value;
      this.makeFilters();
      this.ask(0);
      this.makeDetail();
    });
  }

  // Rows ----------------------------------------------------------------------------------------------------------------------

  /** Get the rows of the tab, from one on. */
  async ask(start) {
    this.start = start;
    if (this.tab === "logs" || !this.tab) return this.makeLogs();
    const asked = (this.asked = Symbol("asked"));
    try {
      const found = await this.request();
      if (asked === this.asked) this.makeRows(found);
    } catch (error) {
      if (asked === this.asked) fill(this.list, h("p.empty", {}, error.what ?? String(error)), h("p.empty.faint", {}, error.now ?? ""));
    }
  }

  request() {
    const { tab, start } = this;
    const common = { find: this.find.value, from: start };
    if (tab === "samples") return getJson("/api/samples", { root: this.sampled.name, split: this.sampled.splits ? this.chosen.split : "", ...common });
    if (tab === "findings") return getJson("/api/findings", { root: this.store.name, severity: this.chosen.severity, ...common });
    const run = this.runRows().find((one) => runName(one) === this.chosen.run) ?? this.runRows()[0];
    if (!run) return { total: 0, rows: [] };
    return getJson("/api/worst", { root: run.root, run: run.run, metric: run.metric, rule: run.rule, from: start });
  }

  makeRows({ total, rows }) {
    const make = { samples: this.makeSample, findings: this.makeFinding, metrics: this.makeScore }[this.tab];
    const nothing = { samples: "No sample with such a name.", findings: "No findings: nothing was wrong.", metrics: "No runs of your own yet." };
    fill(this.list, rows.map((row) => make.call(this, row)), total ? null : h("p.empty", {}, nothing[this.tab]));
    this.rows = rows.filter((row) => row.stored !== false).map((row) => row.key);
    const to = Math.min(this.start + PAGE, total);
    const move = (text, start, isOff) => h("button.small", { disabled: isOff, onclick: () => this.ask(start), "aria-label": text }, text);
    const isMore = total > PAGE;
    fill(
      this.pages,
      isMore ? move("‹", this.start - PAGE, this.start === 0) : null,
      h("span.faint", {}, isMore ? `${count(this.start + 1)} to ${count(to)} of ${count(total)}` : total ? `${count(total)} in all` : ""),
      isMore ? move("›", this.start + PAGE, to === total) : null,
    );
    this.mark();
  }

  makeSample(row) {
    const badge = row.warnings ? h("span.badge.warning", { title: "warnings" }, String(row.warnings)) : null;
    return this.makeRow(row.key, undefined, keyWords(row.key), h("span", {}, badge, h("span.faint", {}, ` ${row.split ?? ""}`)));
  }

  makeFinding(row) {
    const words = h("span", {}, h("span.badge", { data: { severity: row.severity } }, row.severity), ` ${row.check}`, row.field ? h("span.faint", {}, ` ${row.field}`) : null);
    const told = h("span.two.faint", {}, `${row.observed}; expected ${row.expected}`);
    const where = row.key ? keyWords(row.key, row.stored ? "" : row.rejected ? " (rejected)" : "") : h("span.faint", {}, "the whole folder");
    return this.makeRow(row.stored ? row.key : "", row.field, words, where, told);
  }

  makeScore(row) {
    const bar = h("span.bar", {}, h("i", { style: { width: `${100 * row.quality}%` } }));
    const words = h("span.two.faint", {}, `${row.tp} matched, ${row.fp} invented, ${row.fn} missed`);
    return this.makeRow(row.key, undefined, keyWords(row.key), h("b.amount", {}, percent(row.quality)), bar, words);
  }

  makeRow(key, field, ...words) {
    const onclick = key ? () => this.onSample(key, field) : null;
    return h("button.row", { onclick, disabled: !key, data: { key } }, words);
  }

  mark() {
    for (const row of this.list.querySelectorAll("button.row")) {
      const isOn = Boolean(row.dataset.key) && isSame(row.dataset.key, model.sample?.key);
      row.classList.toggle("on", isOn);
      if (isOn) row.scrollIntoView({ block: "nearest" });
    }
  }

  /** Choose the sample some rows further. */
  step(rows) {
    const at = this.rows.findIndex((key) => isSame(key, model.sample?.key));
    const next = this.rows[Math.min(Math.max(at + rows, 0), this.rows.length - 1)];
    if (next && !isSame(next, model.sample?.key)) this.onSample(next);
  }

  // Logs ----------------------------------------------------------------------------------------------------------------------

  makeLogs() {
    if (this.tab !== "logs") return;
    fill(this.pages);
    fill(this.list, state.logRoots().map((root) => this.makeLog(root)));
  }

  makeLog(root) {
    const kinds = Map.groupBy(root.items, (item) => `${item.type}/${item.category}`);
    const broken = root.items.filter((item) => item.error);
    return h(
      "section",
      {},
      h("h2", {}, root.name),
      root.error ? h("p.empty.warn", {}, root.error) : null,
      root.items.length ? null : h("p.empty", {}, "Nothing here yet. Expected: ", h("code", {}, root.expected), ". It appears by itself when it is written."),
      [...kinds.values()].map((items) => this.makeKind(root, items)),
      broken.map((item) => h("p.empty.warn", {}, h("b", {}, item.item), ` ${item.error}`)),
    );
  }

  makeKind(root, items) {
    const [first] = items;
    const shown = model.panes[model.active];
    const isOn = shown?.root === root.name && shown.item.startsWith(`${first.type}/${first.category}/`);
    const times = root.timelines[first.timeline];
    const changes = { root: root.name, item: first.item, what: "", kind: "scene", pin: null, detail: "usual" };
    const onclick = (event) => (event.ctrlKey || event.metaKey || !model.panes.length ? state.addPane(changes) : state.changePane(model.active, changes));
    return h(
      `button.row${isOn ? ".on" : ""}`,
      { onclick, title: "show in the active pane; with Ctrl in a new one" },
      h("span", {}, first.category || "(log)", h("span.faint", {}, ` ${first.type}`)),
      h("span.faint", {}, `${items.length} × ${times.length ? `${count(times.length)} iterations` : "fixed"}`),
      first.attributes.length ? h("span.two.faint", {}, first.attributes.join(", ").replaceAll("_", " ")) : null,
    );
  }

  // What is known of the sample -------------------------------------------------------------------------------------------------

  makeDetail() {
    const { sample } = model;
    this.detail.hidden = !sample || this.tab === "logs";
    if (this.detail.hidden) return;
    fill(
      this.detail,
      h("h2.wrap", {}, sample.key),
      Object.entries(sample.roots).map(([name, held]) => [h("h3", {}, name), this.makeFacts(held.facts), held.findings.map((row) => this.makeOwn(row))]),
      Object.entries(sample.metrics).map(([name, rows]) => makeMetrics(name, rows, this.runOf(name, rows))),
    );
  }

  /** The run whose numbers a sample is shown with: the one chosen among the metrics, else the newest of the tables that scored it. */
  runOf(name, rows) {
    const runs = this.runRows().filter((run) => run.root === name && rows.some((row) => row.run === run.run));
    return runs.find((run) => runName(run) === this.chosen.run) ?? runs[0];
  }

  makeFacts(facts) {
    return h("dl", {}, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
  }

  makeOwn(row) {
    const onclick = () => this.onSample(model.sample.key, row.field);
    return h("button.row", { onclick }, h("span", {}, h("span.badge", { data: { severity: row.severity } }, row.severity), ` ${row.check}`), h("span.two.faint", {}, `${row.observed}; expected ${row.expected}`));
  }
}

/** A table of the quality of each class by one run, a column for each metric and rule. */
function makeMetrics(name, all, run) {
  if (!run) return [h("h3", {}, name), h("p.empty.faint", {}, "No run was scored on this sample.")];
  const rows = all.filter((row) => row.run === run.run);
  const columns = [...new Set(rows.map((row) => `${row.metric} ${row.rule}`))];
  const classes = [...new Map(rows.map((row) => [row.class_id, row.class_name]))].sort((a, b) => a[0] - b[0]);
  const cell = (column, id) => rows.find((row) => `${row.metric} ${row.rule}` === column && row.class_id === id);
  const heads = columns.map((column) => h("th", {}, column));
  const lines = classes.map(([id, text]) => {
    const cells = columns.map((column) => {
      const row = cell(column, id);
      return h("td", { title: row ? `${row.tp} matched, ${row.fp} invented, ${row.fn} missed` : "" }, row ? percent(row.quality) : "");
    });
    return h("tr", {}, h("th", {}, text), cells);
  });
  const told = h("p.faint.wrap", { title: run.run }, `${run.model}${place(run)}`);
  return [h("h3", {}, name), told, h("div.scroll", {}, h("table", {}, h("thead", {}, h("tr", {}, h("th"), heads)), h("tbody", {}, lines)))];
}

/** Whether two keys are of one sample: predictions name it with "_" for "/". */
const isSame = (a, b) => a.replaceAll("/", "_") === (b ?? "").replaceAll("/", "_");
const percent = (share) => (share === null ? "n/a" : (100 * share).toFixed(1));
const runName = (run) => `${run.root} ${run.run} ${run.metric} ${run.rule}`;
const place = (run) => (run.step === null ? "" : ` · step ${count(run.step)}`);

/** A key with its first half, the scene, faint and shortened. */
function keyWords(key, more = "") {
  const [scene, image] = key.split("/");
  if (image === undefined) return h("span.clip", { title: key }, key);
  const words = scene.length > 14 ? `${scene.slice(0, 8)}…` : scene;
  return h("span.clip", { title: key }, h("span.faint", {}, `${words}/`), image, more);
}
