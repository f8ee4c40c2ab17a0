// Which panes are open at first, and those that a click opens together.

import * as state from "./model.js";

const FEW = 4;

/** The panes to begin with: a sample where there are any, else what the logs hold. */
export function defaultPanes() {
  const made = layouts();
  return made.compare ?? made["in space"] ?? made.log ?? [];
}

/** Name -> panes, of what there is. */
export function layouts() {
  const shows = Object.entries(state.model.sample?.roots ?? {}).flatMap(([root, held]) => held.shows.map((one) => ({ root, ...one })));
  const pick = (kind, names) => names.flatMap((what) => shows.filter((one) => one.kind === kind && (!what || one.what === what)));
  const space = pick("scene", ["surface"]);
  const labels = pick("picture", ["rgb", "semantic_2d", "classes"]);
  const found = {
    compare: new Set(space.map((one) => one.root)).size > 1 || space.length ? [...labels, ...space].slice(0, 6) : [],
    "in space": pick("scene", [""]),
    pictures: pick("picture", [""]).filter((one) => one.what !== "view"),
    slices: pick("volume", [""]),
    log: logPanes(),
  };
  const specs = Object.entries(found).map(([name, panes]) => [name, panes.slice(0, 12).map(({ root, kind, what, item = "" }) => ({ root, kind, what, item }))]);
  return Object.fromEntries(specs.filter(([, panes]) => panes.length));
}

/** The first sample of each category and type, of one type after another; with few of them, further samples. */
function logPanes() {
  const firsts = state.logRoots().flatMap((root) => {
    const kinds = new Map();
    for (const item of root.items) if (!item.error && !kinds.has(`${item.type}/${item.category}`)) kinds.set(`${item.type}/${item.category}`, item);
    return [...kinds.values()].map((item) => ({ root: root.name, kind: "scene", what: "", item: item.item }));
  });
  if (firsts.length > 1) return firsts.slice(0, firsts.length > FEW ? 6 : FEW);
  return state.logRoots().flatMap((root) => root.items.filter((item) => !item.error).slice(0, FEW).map((item) => ({ root: root.name, kind: "scene", what: "", item: item.item })));
}
