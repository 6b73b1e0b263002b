// Everything is put in its place.

const KINDS = { curves: Curves, scatter: Scatter, unfinished: Unfinished };

// The accuracy plot has a choice of what to show, and whether as a running mean.
function prepareControls(chart) {
  const box = chart.figure.querySelector("input[type=checkbox]");
  const menu = chart.figure.querySelector("select");
  const apply = () => {
    if (menu) chart.key = menu.value;
    chart.smooth = box?.checked;
  };
  for (const control of [box, menu])
    control?.addEventListener("change", () => {
      apply();
      chart.refresh();
    });
  apply();
}

// One strategy in detail; two of these stand side by side.
class Side {
  static all = [];

  constructor(root, index) {
    this.root = root;
    this.section = page.sections[root.closest("[data-section]").dataset.section];
    this.menu = root.querySelector("select.strategy");
    this.kept = `side ${root.closest("[data-section]").id} ${index}`;
    const kept = memory.read(this.kept);
    if (this.section.strategies.includes(kept)) this.menu.value = kept;
    this.menu.addEventListener("change", async () => {
      memory.write(this.kept, this.menu.value);
      this.assign();
      for (const side of Side.all) if (side.section === this.section) await side.refresh();
    });
    Side.all.push(this);
    this.matrix = new Matrix(root.querySelector("figure.matrix"));
    this.layers = [...root.querySelectorAll("figure.layers")].map((figure) => ({ figure, chart: null }));
    this.prepareActivity();
    this.assign();
  }

  // Few layers are drawn as lines, many as a map.
  assign() {
    const strategy = this.menu.value;
    this.matrix.strategy = strategy;
    const names = this.section.layers[strategy].names;
    const kind = names.length > 6 ? LayerMap : LayerLines;
    for (const entry of this.layers) {
      if (!(entry.chart instanceof kind)) {
        entry.chart?.result?.finalize();
        Chart.all = Chart.all.filter((chart) => chart !== entry.chart);
        const plot = entry.figure.querySelector(".plot");
        plot.replaceWith(element("div", { class: "plot" }));
        entry.chart = new kind(entry.figure);
      }
      entry.chart.strategy = strategy;
    }
    const legend = this.root.querySelector(".key");
    legend.hidden = kind === LayerMap;
    legend.replaceChildren(...[...names, "whole network"].map((name, index) =>
      element("li", {}, swatch(layerStyle(index, names.length)), name)));
    this.assignActivity();
  }

  prepareActivity() {
    const figure = this.root.querySelector("figure.activity");
    if (!figure) return;
    this.activity = new Activity(figure);
    this.slider = figure.querySelector("input");
    this.layer = figure.querySelector("select");
    for (const control of [this.slider, this.layer])
      control.addEventListener("input", () => {
        this.readActivity();
        this.activity.refresh();
      });
  }

  assignActivity() {
    if (!this.activity) return;
    const found = this.section.activity[this.menu.value];
    this.activity.figure.hidden = !found;
    if (!found) return;
    this.slider.max = found.interventions.length - 1;
    this.slider.value = 0;
    this.layer.replaceChildren(
      element("option", { value: -1 }, "all layers"),
      ...found.layers.map((name, index) => element("option", { value: index }, name)),
    );
    this.readActivity();
  }

  readActivity() {
    const found = this.section.activity[this.menu.value];
    Object.assign(this.activity, {
      strategy: this.menu.value, intervention: Number(this.slider.value), layer: Number(this.layer.value),
    });
    const { experience } = found.interventions[this.slider.value];
    const text = `${Number(this.slider.value) + 1} of ${found.interventions.length}` +
      (experience === null ? "" : `, experience ${experience + 1}`);
    this.slider.setAttribute("aria-valuetext", text);
    this.activity.figure.querySelector("output").textContent = `${text}, seed ${found.seed}`;
  }

  get charts() {
    const shown = this.activity && !this.activity.figure.hidden ? [this.activity] : [];
    return [...this.layers.map(({ chart }) => chart), this.matrix, ...shown];
  }

  async refresh() {
    for (const chart of this.charts) await chart.refresh();
  }
}

// While runs are going on the page is written anew, and loads itself again unless the reader has asked it not to.
function prepareLive() {
  const button = document.getElementById("pause");
  if (!button) return;
  let paused = memory.read("paused") ?? false;
  const show = () => {
    button.textContent = paused ? "Go on" : "Pause";
    button.setAttribute("aria-pressed", String(paused));
  };
  button.addEventListener("click", () => {
    paused = !paused;
    memory.write("paused", paused);
    show();
  });
  show();
  if (memory.read("scroll") && !scrollY) scrollTo(0, memory.read("scroll"));
  setInterval(() => {
    if (paused || document.hidden || document.getElementById("picker")?.open) return;
    memory.write("scroll", scrollY);
    location.reload();
  }, page.live.seconds * 1000);
}

async function start() {
  prepareTables();
  if (document.getElementById("picker")) {
    preparePicker();
    selection.listeners.push(drawLegend);
    selection.restore();
  }
  for (const place of document.querySelectorAll("[data-run]")) place.append(swatch(runStyle(Number(place.dataset.run))));
  document.body.classList.add("scripted");
  const charts = [];
  for (const figure of document.querySelectorAll("figure[data-kind]")) {
    const chart = new KINDS[figure.dataset.kind](figure);
    prepareControls(chart);
    charts.push(chart);
  }
  document.querySelectorAll(".side").forEach((root, index) => new Side(root, index % 2));
  selection.listeners.push(() => charts.forEach((chart) => chart.refresh()));
  addEventListener("beforeprint", () => document.querySelectorAll("details.runs").forEach((more) => (more.open = true)));
  for (const chart of [...charts, ...Side.all.flatMap((side) => side.charts)]) await chart.refresh();
  document.body.classList.add("drawn");
  prepareLive(); // not before the plots are there, however slow the machine is
}

start();
