// The timeline: all iterations of all panes in steps, and playing them.

import { choice, fill, h } from "./dom.js";
import * as state from "./model.js";

const { model } = state;
const SPEEDS = [1, 2, 4, 8, 16, 30];
const MOST_TICKS = 300;

/** What is below the panes. */
export class Timeline {
  /** @param {() => Promise<void>} settled resolves when all panes show what they should */
  constructor(settled) {
    this.settled = settled;
    this.slider = h("input", { type: "range", min: 0, step: 1, "aria-label": "iteration", oninput: () => this.pick() });
    this.number = h("input.number", { type: "number", "aria-label": "iteration as a number", onchange: () => this.go(Number(this.number.value)) });
    this.ticks = h("div.ticks", { "aria-hidden": "true" });
    this.place = h("span.faint.mono");
    this.play = h("button", { title: "play or stop (space)", "aria-label": "play", onclick: () => this.toggle() }, "▶");
    this.choices = h("span.choices");
    const step = (text, title, steps) => h("button", { title, "aria-label": title, onclick: () => this.step(steps) }, text);
    this.element = h(
      "footer.timeline",
      { "aria-label": "timeline" },
      step("|◂", "first iteration (Home)", -Infinity),
      step("◂", "step back (←)", -1),
      this.play,
      step("▸", "step forward (→)", 1),
      step("▸|", "last iteration (End)", Infinity),
      h("div.track", {}, this.ticks, this.slider),
      this.number,
      this.place,
      this.choices,
    );
  }

  update(names) {
    this.times = state.allTimes();
    this.element.hidden = !this.times.length;
    if (!this.times.length) return;
    const at = this.times.indexOf(state.nearest(this.times, model.time));
    Object.assign(this.slider, { max: this.times.length - 1, value: at });
    this.slider.setAttribute("aria-valuetext", `iteration ${model.time}`);
    if (document.activeElement !== this.number) this.number.value = model.time;
    this.place.textContent = `${at + 1} of ${this.times.length}`;
    this.play.textContent = model.playing ? "❚❚" : "▶";
    if (["index", "panes", "follow", "loop", "speed"].some((name) => names.has(name))) this.makeChoices();
  }

  makeChoices() {
    const marks = this.times.length <= MOST_TICKS ? this.times : [];
    const place = (at) => `${(100 * at) / Math.max(this.times.length - 1, 1)}%`;
    fill(this.ticks, marks.map((time, at) => h("i", { style: { left: place(at) }, title: String(time) })));
    const speeds = SPEEDS.map((speed) => [String(speed), `${speed} / s`]);
    const flag = (name, text, title) =>
      h("button", { title, "aria-pressed": String(model[name]), onclick: () => this.set(name) }, text);
    fill(
      this.choices,
      choice("speed", [{ group: "", options: speeds }], String(model.speed), (speed) => state.change({ speed: Number(speed) })),
      flag("loop", "loop", "begin again after the last iteration"),
      flag("follow", "follow", "go to new iterations as they come"),
    );
  }

  set(name) {
    state.change({ [name]: !model[name] });
  }

  pick() {
    this.go(this.times[Number(this.slider.value)]);
  }

  /** Go to an iteration, to the nearest that there is. */
  go(time) {
    const found = state.nearest(this.times, Number.isFinite(time) ? time : model.time);
    state.change({ time: found, follow: model.follow && found === this.times.at(-1) });
  }

  step(steps) {
    const at = this.times.indexOf(state.nearest(this.times, model.time));
    this.go(this.times[Math.min(Math.max(at + steps, 0), this.times.length - 1)]);
  }

  toggle() {
    state.change({ playing: !model.playing });
    if (model.playing) this.run();
  }

  /** Step by step; a step is taken when the one before is on the screen, and not sooner than the speed says. */
  async run() {
    while (model.playing && this.times.length > 1) {
      const pause = new Promise((resolve) => setTimeout(resolve, 1000 / model.speed));
      await Promise.all([this.settled(), pause]);
      if (!model.playing) return;
      const isLast = state.nearest(this.times, model.time) === this.times.at(-1);
      if (isLast && !model.loop) state.change({ playing: false });
      else this.step(isLast ? -Infinity : 1);
    }
  }
}
