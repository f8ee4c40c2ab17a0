"""A tab of a browser with the viewer's page in it: what a person does there, and what there is to see."""

import json
import time
from dataclasses import dataclass, field
from typing import Any

LOOK = """number => {
  const { data, width, height } = window.__viewer.pixels(number);
  const seen = { red: 0, green: 0, blue: 0, other: 0 };
  let sum = 0;
  for (let at = 0; at < 4 * width * height; at += 4) {
    const [r, g, b] = [data[at], data[at + 1], data[at + 2]];
    sum = (sum * 31 + r + 256 * g + 65536 * b) % 2147483647;
    const [low, high] = [Math.min(r, g, b), Math.max(r, g, b)];
    const isOfAxes = (at / 4) % width < 60 && at / 4 / width > height - 60;
    if (isOfAxes || high - low < 40) continue;
    seen[high < 1.5 * low ? "other" : high === r ? "red" : high === g ? "green" : "blue"] += 1;
  }
  const shares = Object.fromEntries(Object.entries(seen).map(([name, count]) => [name, count / (width * height)]));
  return { ...shares, all: Object.values(shares).reduce((a, b) => a + b), sum };
}"""
"""Shares of a pane that are strongly coloured, by their strongest part, and a checksum. Background and greys do not count."""


@dataclass
class Tab:
    """A page in the browser, and what it did that it should not."""

    page: Any
    asked: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)

    def open(self, url: str, address: str = "") -> "Tab":
        self.page.goto("about:blank")
        self.page.goto(f"{url}#{address}")
        self.page.evaluate("window.__viewer.ready")
        return self.settle()

    def leave(self) -> None:
        """Go, before the viewer does; what the browser told of answers that are errors is meant."""
        self.page.goto("about:blank")
        self.complaints = [told for told in self.complaints if "Failed to load resource" not in told]

    def settle(self) -> "Tab":
        self.page.evaluate("window.__viewer.settled()")
        return self

    def press(self, *keys: str) -> "Tab":
        for key in keys:
            self.page.keyboard.press(key)
        return self.settle()

    def click(self, selector: str, **options: Any) -> "Tab":
        self.page.locator(selector).first.click(**options)
        return self.settle()

    def choose(self, label: str, value: str) -> "Tab":
        self.page.get_by_label(label, exact=True).first.select_option(value)
        return self.settle()

    def set(self, number: int, **changes: Any) -> "Tab":
        self.page.evaluate("([number, changes]) => window.__viewer.setView(number, changes)", [number, changes])
        return self.settle()

    def drag(self, number: int) -> "Tab":
        box = self.page.locator(".pane canvas").nth(number).bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + 60, y + 20, steps=3)
        self.page.mouse.up()
        return self.settle()

    def until(self, condition: str) -> "Tab":
        """Wait until something is true of the page; asked from here, for the page itself may evaluate no text."""
        end = time.monotonic() + 60
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, f"it never came to {condition}"
            self.page.wait_for_timeout(50)
        return self.settle()

    def until_sample(self, key: str) -> "Tab":
        return self.until(f"window.__viewer.state().sample?.key === {json.dumps(key)}")

    def look(self, number: int = 0) -> Any:
        return self.page.evaluate(LOOK, number)

    def stats(self, number: int = 0) -> Any:
        return self.page.evaluate("number => window.__viewer.stats(number)", number)

    @property
    def state(self) -> Any:
        return self.page.evaluate("window.__viewer.state()")

    def text(self, selector: str = "body") -> str:
        return str(self.page.locator(selector).first.inner_text())
