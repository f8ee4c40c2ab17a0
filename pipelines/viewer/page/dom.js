// Elements in one line.

/**
 * An element with attributes and children. Attributes that begin with "on" are listeners, "data" and "style" are objects, null is left out.
 * @param {string} tag name, with classes behind dots: "div.card.small"
 * @param {Object<string, any>} [attributes]
 * @param {...(Node|string|null|undefined|Array)} children
 * @returns {HTMLElement}
 */
export function h(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  element.classList.add(...classes);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "data") Object.assign(element.dataset, value);
    else if (key === "style") Object.assign(element.style, value);
    else if (key in element && typeof value !== "string") element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

/** Replace what an element holds. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

/**
 * A select whose options come in groups.
 * @param {string} label for those who do not see it
 * @param {Array<{group: string, options: Array<[string, string]>}>} groups of [value, text]
 * @param {string} value the one chosen
 * @param {(value: string) => void} onChoose
 */
export function choice(label, groups, value, onChoose) {
  const made = groups.map(({ group, options }) => {
    const entries = options.map(([key, text]) => h("option", { value: key, selected: key === value }, text));
    return group ? h("optgroup", { label: group }, entries) : entries;
  });
  return h("select", { "aria-label": label, title: label, onchange: (event) => onChoose(event.target.value) }, made);
}

/** Whole numbers with thin separators, as people read them. */
export const count = (number) => Number(number).toLocaleString("en-US");

/** A number with a few digits that matter. */
export function short(number) {
  if (!Number.isFinite(number)) return "n/a";
  if (number !== 0 && (Math.abs(number) >= 1e5 || Math.abs(number) < 1e-3)) return number.toExponential(2);
  return String(Number(number.toPrecision(4)));
}

/** Replace what an element holds; who had the focus in it has it again. */
export function refill(element, ...children) {
  const label = element.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
  fill(element, ...children);
  if (label) [...element.children].find((child) => child.getAttribute("aria-label") === label)?.focus();
}

/** The colours of a scale between its ends. */
export function scaleBar({ low, high, unit, colors }) {
  const steps = [0, 0.25, 0.5, 0.75, 1].map((share) => colors[Math.round(share * (colors.length - 1))]);
  const background = `linear-gradient(90deg, ${steps.map((color) => `rgb(${color.join(",")})`).join(", ")})`;
  return h("span.scale", {}, short(low), h("i", { style: { background } }), `${short(high)} ${unit}`);
}
