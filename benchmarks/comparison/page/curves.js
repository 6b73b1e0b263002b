// Plots with lines and points: series by experience, layers by experience, recovery against forgetting.

const integers = { tickMinStep: 1, format: "d", grid: false };

class Lines extends Chart {
  // Each line: { name, style, mean: [...], half: [...] or null }; lines() is a subclass's.

  get middles() {
    const { first, last } = this.grid;
    return first.map((value, index) => (value + last[index]) / 2);
  }

  rows() {
    const middles = this.middles;
    const [low, high] = this.range;
    return this.lines().flatMap(({ name, style, mean, half }) =>
      mean.map((value, index) => ({
        name,
        color: style.color,
        dash: style.dash,
        x: middles[index],
        mean: value,
        low: value === null || !half || !selection.bands ? null : Math.max(low, value - half[index]),
        high: value === null || !half || !selection.bands ? null : Math.min(high, value + half[index]),
      })),
    );
  }

  get range() {
    return /_fraction$|accuracy/.test(this.key) ? [0, 1] : [0, Infinity];
  }

  get scale() {
    if (/_fraction$/.test(this.key)) return shares(this.rows().flatMap(({ mean, high }) => [mean, high]));
    return { zero: !/accuracy/.test(this.key), nice: true };
  }

  spec() {
    const y = { type: "quantitative", title: null, axis: { tickCount: 5 }, scale: this.scale };
    const few = this.grid.first.length <= 20;
    return {
      height: this.height,
      params: [{ name: "emphasised", value: selection.emphasised }],
      encoding: {
        x: { field: "x", type: "quantitative", title: "experience", axis: integers,
          scale: { domain: [0.5, this.grid.total + 0.5], nice: false } },
        color: { field: "color", type: "nominal", scale: null },
        detail: { field: "name", type: "nominal" },
      },
      layer: [
        { mark: { type: "area", invalid: "break-paths-filter-domains" },
          encoding: { y: { ...y, field: "low" }, y2: { field: "high" }, opacity: stepBack(0.13) } },
        { mark: { type: "line", strokeWidth: 2, strokeJoin: "round", invalid: "break-paths-filter-domains" },
          encoding: { y: { ...y, field: "mean" }, strokeDash: { field: "dash", type: "nominal", scale: null }, opacity: stepBack(1) } },
        ...(few ? [{ mark: { type: "point", filled: true, size: 26 }, encoding: { y: { ...y, field: "mean" }, opacity: stepBack(1) } }] : []),
      ],
    };
  }

  places() {
    const lines = this.lines();
    const [top, height] = [this.corner.top, this.view.height()];
    return this.middles.map((middle, index) => {
      const x = this.at("x", middle);
      return {
        x, y: top + 12, row: 0, column: index, middle,
        box: { left: x - 0.5, top, width: 1, height },
        head: experiences(this.grid, index),
        lines: () => lines
          .filter(({ mean }) => mean[index] !== null)
          .sort((one, other) => other.mean[index] - one.mean[index])
          .map(({ name, style, mean, half }) =>
            ({ name, style, text: number(mean[index]) + (half ? ` ± ${number(half[index])}` : "") })),
      };
    });
  }

  distance(place, x) {
    return Math.abs(place.x - x);
  }

  // The same experience is marked in all plots of the section.
  select(place) {
    for (const other of Chart.all) {
      if (other === this || !(other instanceof Lines) || other.section !== this.section || !other.view) continue;
      const same = place && other.found.find(({ middle }) => middle === place.middle);
      if (same) other.show(same);
      else other.mark.hidden = true;
    }
  }

  name() {
    const said = this.lines().slice(0, 8).map(({ name, mean }) => {
      const known = mean.filter((value) => value !== null);
      return `${name} from ${number(known[0], 2)} to ${number(known.at(-1), 2)}`;
    });
    return `${this.title} by experience: ${said.join("; ") || "no strategy is shown"}. Arrow keys read the values.`;
  }
}

class Curves extends Lines {
  emphasis = true;

  get height() {
    return Number(this.figure.dataset.height);
  }

  get title() {
    return this.figure.querySelector("figcaption").textContent.trim();
  }

  get grid() {
    return this.section.grids[/accuracy/.test(this.key) ? "accuracy" : "units"];
  }

  get series() {
    const { curves } = this.section;
    return (this.smooth && curves["~" + this.key]) || curves[this.key];
  }

  lines() {
    return selection.shown
      .filter((name) => this.series[name])
      .map((name) => ({ name, style: selection.style(name), ...this.series[name] }));
  }
}

// Curves of single runs that are not finished.
class Unfinished extends Lines {
  height = 200;

  get title() {
    return this.figure.querySelector("figcaption").textContent.trim();
  }

  get grid() {
    const every = Array.from({ length: this.section.experiences }, (_, index) => index + 1);
    return { first: every, last: every, total: every.length };
  }

  lines() {
    return this.section.unfinished.map((run, index) => {
      const style = runStyle(index);
      const values = run[this.key];
      const mean = this.grid.first.map((_, experience) => values[experience] ?? null);
      return { name: `${run.strategy}, seed ${run.seed}`, style, mean, half: null };
    });
  }
}

function runStyle(index) {
  return { color: `var(--c${index % COLOURS})`, dash: DASHES[Math.floor(index / COLOURS) % DASHES.length] };
}

class LayerLines extends Lines {
  height = 150;

  get title() {
    return `${this.strategy}: ${this.figure.querySelector("figcaption").textContent.trim()} of each layer`;
  }

  get range() {
    return [0, 1];
  }

  get grid() {
    return this.section.grids.layers;
  }

  // One scale for the two that stand side by side.
  get scale() {
    const both = [...this.figure.closest(".sides").querySelectorAll("select.strategy")].map((menu) => menu.value);
    return shares(both.flatMap((strategy) => this.section.layers[strategy][this.key].flat()));
  }

  lines() {
    const found = this.section.layers[this.strategy];
    return found[this.key].map((mean, index) => ({
      name: found.names[index] ?? "whole network",
      style: layerStyle(index, found.names.length),
      mean,
      half: null,
    }));
  }
}

function layerStyle(index, count) {
  if (index === count) return { color: "var(--ink)", dash: DASHES[0] };
  return { color: `var(--c${index % COLOURS})`, dash: DASHES[(index % 3) + 1] };
}

class Scatter extends Chart {
  emphasis = true;

  // All strategies have a point; those that are shown have their colour, name and intervals.
  rows() {
    const { points } = this.section.scatter;
    const shown = new Set(selection.shown);
    const labels = this.labels(points.filter(({ name }) => shown.has(name)));
    return points.map(({ name, x, y }) => ({
      name, x: x[0], x0: x[1], x1: x[2], y: y[0], y0: y[1], y1: y[2],
      color: shown.has(name) ? selection.style(name).color : "var(--unchosen)",
      size: shown.has(name) ? 90 : 36,
      shown: shown.has(name),
      ...(labels.get(name) ?? { side: "none", dy: 0 }),
    }));
  }

  get height() {
    return this.figure.clientWidth < 500 ? 300 : 380;
  }

  // Names stand left or right of their points, at the height at which they cover the fewest others.
  labels(points) {
    const extent = (values) => [Math.min(...values), Math.max(...values)];
    const scale = ([low, high], room) => (value) => (high > low ? ((value - low) / (high - low)) * room : room / 2);
    const across = scale(extent(points.flatMap(({ x }) => x.filter((value) => value !== null))), this.plot.clientWidth - 80);
    const up = scale(extent(points.flatMap(({ y }) => y.filter((value) => value !== null))), this.height - 60);
    const taken = points.map(({ x, y }) => ({ left: across(x[0]) - 6, right: across(x[0]) + 6, top: -up(y[0]) - 6, bottom: -up(y[0]) + 6 }));
    const overlap = (one, other) =>
      Math.max(0, Math.min(one.right, other.right) - Math.max(one.left, other.left)) *
      Math.max(0, Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top));
    const found = new Map();
    for (const { name, x, y } of points) {
      const [centre, middle, width] = [across(x[0]), -up(y[0]), 6.2 * Math.min(name.length, 30)];
      let best = null;
      for (const dy of [-8, 8, -20, 20, -32, 32])
        for (const side of centre > (this.plot.clientWidth - 80) / 2 ? ["left", "right"] : ["right", "left"]) {
          const left = side === "right" ? centre + 9 : centre - 9 - width;
          const box = { left, right: left + width, top: middle + dy - 7, bottom: middle + dy + 7 };
          const outside = Math.max(0, -20 - box.left) + Math.max(0, box.right - this.plot.clientWidth + 60);
          const cost = taken.reduce((sum, other) => sum + overlap(box, other), outside * 100);
          if (!best || cost < best.cost) best = { cost, box, side, dy };
        }
      taken.push(best.box);
      found.set(name, { side: best.side, dy: best.dy });
    }
    return found;
  }

  spec() {
    const { axes, lines } = this.section.scatter;
    const color = { field: "color", type: "nominal", scale: null };
    const axis = { tickCount: this.figure.clientWidth < 500 ? 4 : 8 };
    const x = { field: "x", type: "quantitative", title: axes.x, axis, scale: { zero: false, nice: true, padding: 12 } };
    const y = { ...x, field: "y", title: axes.y };
    const interval = (across, from, to) => ({
      transform: [{ filter: `datum.shown && isValid(datum.${from})` }],
      mark: { type: "rule", strokeWidth: 1.5 },
      encoding: across
        ? { x: { ...x, field: from }, x2: { field: to }, y, color, opacity: stepBack(0.55) }
        : { x, y: { ...y, field: from }, y2: { field: to }, color, opacity: stepBack(0.55) },
    });
    const label = (side, dy) => ({
      transform: [{ filter: `datum.side === '${side}' && datum.dy === ${dy}` }],
      mark: { type: "text", align: side === "left" ? "right" : "left", dx: side === "left" ? -9 : 9, dy, fontSize: 11, limit: 190 },
      encoding: { x, y, text: { field: "name" }, color: { value: "var(--ink)" }, opacity: stepBack(1) },
    });
    const places = [...new Map(this.rows().filter(({ shown }) => shown).map(({ side, dy }) => [`${side} ${dy}`, [side, dy]])).values()];
    return {
      height: this.height,
      params: [{ name: "emphasised", value: selection.emphasised }],
      layer: [
        ...lines.map((value) => ({ data: { values: [{ value }] }, mark: { type: "rule", color: "var(--soft)", strokeDash: [3, 3] },
          encoding: { y: { ...y, field: "value" } } })),
        interval(true, "x0", "x1"),
        interval(false, "y0", "y1"),
        { mark: { type: "point", filled: true },
          encoding: { x, y, color, size: { field: "size", type: "quantitative", scale: null }, opacity: stepBack(0.95) } },
        ...places.map(([side, dy]) => label(side, dy)),
      ],
    };
  }

  places() {
    const { axes, points } = this.section.scatter;
    const text = ([mean, low, high]) => number(mean) + (low === null ? "" : ` [${number(low)}, ${number(high)}]`);
    return points
      .map((point) => ({ point, x: this.at("x", point.x[0]), y: this.at("y", point.y[0]) }))
      .sort((one, other) => one.x - other.x)
      .map(({ point, x, y }, index) => ({
        x, y, row: 0, column: index,
        box: { left: x - 9, top: y - 9, width: 18, height: 18 },
        head: point.name,
        lines: () => [{ name: axes.y, text: text(point.y) }, { name: axes.x, text: text(point.x) }],
      }));
  }

  name() {
    const { axes, points } = this.section.scatter;
    return `${axes.y} against ${axes.x} of ${points.length} strategies. Arrow keys read them from left to right.`;
  }
}
