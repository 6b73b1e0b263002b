// What all plots have in common: drawing, and a cursor that pointer and arrow keys move from value to value.

const INK = { labelColor: "var(--soft)", titleColor: "var(--soft)", labelFontSize: 11, titleFontSize: 11 };
const EMBED = {
  mode: "vega-lite",
  renderer: "svg",
  ast: true, // expressions are interpreted: the page forbids to make code from text
  actions: false,
  hover: false,
  tooltip: () => {},
  defaultStyle: false,
  logLevel: 1,
  config: {
    background: "transparent",
    font: "system-ui, sans-serif",
    aria: false, // a plot has one name, and its values are read with the arrow keys
    padding: { left: 2, right: 10, top: 6, bottom: 2 },
    view: { stroke: null },
    axis: { ...INK, titleFontWeight: "normal", gridColor: "var(--rule)", domainColor: "var(--soft)",
      tickColor: "var(--soft)", labelLimit: 130 },
    legend: { ...INK, titleFontWeight: "normal" },
  },
};

const number = (value, digits = 3) =>
  value === null || value === undefined ? "–"
    : (Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(digits)).replace("-", "−").replace(/^−(0\.?0*)$/, "$1");

class Chart {
  static all = [];

  constructor(figure) {
    this.figure = figure;
    this.section = page.sections[figure.closest("[data-section]").dataset.section];
    this.key = figure.dataset.key;
    this.stage = element("div", { class: "stage" });
    this.mark = element("div", { class: "mark", hidden: true });
    this.tip = element("div", { class: "tip", hidden: true });
    this.said = element("div", { class: "said", "aria-live": "polite" });
    this.plot = figure.querySelector(".plot");
    this.plot.append(this.stage, this.mark, this.tip, this.said);
    this.plot.tabIndex = 0;
    this.plot.setAttribute("role", "group");
    this.plot.setAttribute("aria-roledescription", "plot");
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerdown", (event) => this.point(event));
    this.plot.addEventListener("pointerleave", () => this.leave());
    this.plot.addEventListener("keydown", (event) => this.press(event));
    this.plot.addEventListener("blur", () => this.leave());
    Chart.all.push(this);
  }

  // A subclass has: spec(), rows(), name(), places(), and select(place) where plots move together.

  async draw() {
    this.leave();
    const spec = { ...this.spec(), width: "container", data: { name: "rows", values: this.rows() } };
    this.result?.finalize();
    this.result = await vegaEmbed(this.stage, spec, EMBED);
    this.plot.setAttribute("aria-label", this.name());
  }

  refresh() {
    return (this.queue = (this.queue ?? Promise.resolve()).then(() => this.draw()));
  }

  // Other strategies step back; only plots that compare strategies know how.
  emphasise(name) {
    if (!this.view || !this.emphasis) return;
    this.view.signal("emphasised", name);
    this.view.runAsync();
  }

  get view() {
    return this.result?.view;
  }

  // Pixels within the plot of a value of a scale.
  at(scale, value) {
    const band = this.view.scale(scale);
    return band(value) + (scale === "x" ? this.corner.left : this.corner.top);
  }

  // Pixels from the plot's edges to where its data begin.
  get corner() {
    const [[x, y], { left, top }] = [this.view.origin(), this.view.padding()];
    return { left: x + left, top: y + top };
  }

  get found() {
    if (!this.cached && this.view) this.cached = this.places();
    return this.cached ?? [];
  }

  // How far a place is from the pointer; some plots look along one axis only.
  distance(place, x, y) {
    return (place.x - x) ** 2 + (place.y - y) ** 2;
  }

  point(event) {
    const frame = this.stage.getBoundingClientRect();
    const [x, y] = [event.clientX - frame.left, event.clientY - frame.top];
    let best = null;
    for (const place of this.found)
      if (!best || this.distance(place, x, y) < this.distance(best, x, y)) best = place;
    if (best && best !== this.place) this.go(best);
  }

  press(event) {
    if (event.target !== this.plot) return;
    if (event.key === "Escape") return this.leave();
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
      PageUp: [-10, 0], PageDown: [10, 0], Home: [-Infinity, 0], End: [Infinity, 0] };
    const step = steps[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey || !this.found.length) return;
    event.preventDefault();
    const [across, down] = step;
    const from = this.place ?? this.found.at(this.start ?? 0);
    let next = from;
    if (this.place && across) {
      const row = this.found.filter((place) => place.row === from.row);
      const index = Math.min(Math.max(row.indexOf(from) + across, 0), row.length - 1);
      next = row[index];
    } else if (this.place) {
      next = this.found.find((place) => place.row === from.row + down && place.column === from.column) ?? from;
    }
    this.go(next);
    this.said.textContent = [next.head, ...next.lines().map((line) => `${line.name} ${line.text}`)].join(", ");
  }

  go(place) {
    this.place = place;
    this.show(place);
    const lines = place.lines();
    this.tip.replaceChildren(
      element("strong", {}, place.head),
      ...lines.slice(0, 12).map((line) =>
        element("div", {}, ...(line.style ? [swatch(line.style)] : []), element("span", {}, line.name), element("b", {}, line.text))),
      ...(lines.length > 12 ? [element("div", {}, `and ${lines.length - 12} more`)] : []),
    );
    this.tip.hidden = false;
    this.putTip(place);
    this.select?.(place);
  }

  // Beside the place where there is room for it, else below the plot, and never beyond the window.
  putTip({ x, y }) {
    const [width, height] = [this.tip.offsetWidth, this.tip.offsetHeight];
    const edge = this.plot.getBoundingClientRect().left;
    const [start, end] = [8 - edge, document.documentElement.clientWidth - 8 - edge];
    const beside = x + 12 + width <= end ? x + 12 : x - 12 - width >= start ? x - 12 - width : null;
    const left = beside ?? Math.max(start, Math.min(x - width / 2, end - width));
    const top = beside === null ? this.plot.clientHeight : Math.max(0, Math.min(y - 20, this.plot.clientHeight - height));
    Object.assign(this.tip.style, { left: `${left}px`, top: `${top}px` });
  }

  show(place) {
    const { left, top, width, height } = place.box;
    Object.assign(this.mark.style, { left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height}px` });
    this.mark.hidden = false;
  }

  leave() {
    this.place = this.cached = null;
    this.mark.hidden = this.tip.hidden = true;
    this.select?.(null);
  }
}

// The opacity of a mark in plots that compare strategies.
function stepBack(opacity) {
  return { condition: { test: "emphasised === '' || datum.name === emphasised", value: opacity }, value: opacity * 0.15 };
}

addEventListener("resize", () => Chart.all.forEach((chart) => chart.leave()));

// The experiences that a point or cell of a grid stands for, in words.
function experiences({ first, last }, index) {
  return first[index] === last[index] ? `experience ${first[index]}` : `experiences ${first[index]} to ${last[index]}`;
}

// A scale for shares that shows small ones, and nothing but zeros as zero.
function shares(values) {
  const most = Math.max(0, ...values.filter((value) => value !== null));
  return { domain: [0, Math.min(1, Math.max(0.1, Math.ceil(most * 10 - 1e-9) / 10))], nice: false };
}
