// Plots of one strategy: its accuracy matrix, its layers where they are many, and what units do before and after.

// A cell reaches to the next one that is shown: experiences that are not scored leave no gaps.
function edgesOf({ first, total }, index) {
  return [first[index] - 0.5, (first[index + 1] ?? total + 1) - 0.5];
}

class CellMap extends Chart {
  // cells() of a subclass: { column, row, x0, x1, y0, y1, value, head, label }.

  rows() {
    // Each reaches a little below the next, which closes the gaps that rounding leaves between cells.
    const { total, bottom } = this.frame;
    const on = (from, to, end) => Math.min(to + 0.12 * (to - from), end + 0.5);
    return this.cells().map(({ x0, x1, y0, y1, value }) =>
      ({ x0, x1: on(x0, x1, total), y0, y1: on(y0, y1, bottom), x: (x0 + x1) / 2, y: (y0 + y1) / 2, value }));
  }

  get texts() {
    return false;
  }

  spec() {
    const { total, bottom } = this.frame;
    const encoding = {
      x: { field: "x0", type: "quantitative", title: this.across, axis: integers,
        scale: { domain: [0.5, total + 0.5], nice: false } },
      x2: { field: "x1" },
      y: { field: "y0", type: "quantitative", title: this.down, axis: this.axis,
        scale: { domain: [0.5, bottom + 0.5], reverse: true, nice: false } },
      y2: { field: "y1" },
    };
    const legend = { title: null, gradientThickness: 8, gradientLength: Math.min(this.height, 120), tickCount: 3, offset: 6 };
    const color = { field: "value", type: "quantitative", scale: { domain: [0, 1], scheme: "viridis" }, legend };
    return {
      height: this.height,
      layer: [
        { mark: { type: "rect", strokeWidth: 0 }, encoding: { ...encoding, color } },
        ...(this.texts ? [{
          transform: [{ calculate: "format(datum.value, '.2f')", as: "text" }, { calculate: "datum.value < 0.55 ? 'white' : 'black'", as: "ink" }],
          mark: { type: "text", fontSize: 10 },
          encoding: { x: { ...encoding.x, field: "x" }, y: { ...encoding.y, field: "y" }, text: { field: "text" },
            color: { field: "ink", type: "nominal", scale: null } },
        }] : []),
      ],
    };
  }

  get axis() {
    return integers;
  }

  places() {
    return this.cells().map((cell) => {
      const [left, right] = [this.at("x", cell.x0), this.at("x", cell.x1)];
      const [top, bottom] = [this.at("y", cell.y0), this.at("y", cell.y1)];
      return {
        x: (left + right) / 2, y: (top + bottom) / 2, row: cell.row, column: cell.column,
        box: { left, top, width: right - left, height: bottom - top },
        head: cell.head,
        lines: () => [{ name: cell.label, text: number(cell.value) }],
      };
    });
  }
}

class Matrix extends CellMap {
  across = "tested on experience";
  down = "after experience";
  start = -1;

  get height() {
    return Math.min(300, Math.max(200, this.plot.clientWidth - 90));
  }

  get grid() {
    return this.section.grids.matrix;
  }

  get frame() {
    return { total: this.grid.total, bottom: this.grid.total };
  }

  get texts() {
    return this.grid.first.length <= 10;
  }

  cells() {
    const edges = (index) => edgesOf(this.grid, index);
    return this.section.matrices[this.strategy].flatMap((row, i) => row.flatMap((value, j) => {
      if (value === null) return [];
      const [[x0, x1], [y0, y1]] = [edges(j), edges(i)];
      const head = `after ${experiences(this.grid, i)}, on ${experiences(this.grid, j)}`;
      return [{ x0, x1, y0, y1, value, row: i, column: j, head, label: "test accuracy" }];
    }));
  }

  name() {
    const last = this.section.matrices[this.strategy].at(-1).filter((value) => value !== null);
    const mean = last.reduce((sum, value) => sum + value, 0) / last.length;
    return `Accuracy matrix of ${this.strategy}: test accuracy on each experience after training on each; at the end ` +
      `${number(mean, 2)} on average. Arrow keys read the values.`;
  }
}

class LayerMap extends CellMap {
  across = "experience";
  down = null;

  get height() {
    return Math.max(120, 13 * this.frame.bottom);
  }

  get names() {
    return [...this.section.layers[this.strategy].names, "whole network"];
  }

  get frame() {
    return { total: this.section.grids.layers.total, bottom: this.names.length };
  }

  get axis() {
    const names = JSON.stringify(this.names);
    return { ...integers, values: this.names.map((_, index) => index + 1), labelExpr: `${names}[datum.value - 1]`, labelFontSize: 10,
      labelLimit: this.plot.clientWidth < 420 ? 90 : 130, ticks: false };
  }

  cells() {
    const { grids, layers } = this.section;
    const label = this.figure.querySelector("figcaption").textContent.trim();
    return layers[this.strategy][this.key].flatMap((values, row) => values.flatMap((value, column) => {
      if (value === null) return [];
      const [x0, x1] = edgesOf(grids.layers, column);
      const head = `${this.names[row]}, ${experiences(grids.layers, column)}`;
      return [{ x0, x1, y0: row + 0.5, y1: row + 1.5, value, row, column, head, label }];
    }));
  }

  name() {
    const shares = this.section.layers[this.strategy][this.key].map((values, index) => `${this.names[index]} ${number(values.at(-1), 2)}`);
    const label = this.figure.querySelector("figcaption").textContent.trim();
    return `${this.strategy}: ${label} by layer and experience; at the end ${shares.slice(0, 8).join(", ")}. Arrow keys read the values.`;
  }
}

class Activity extends Chart {
  get counts() {
    const { interventions } = this.section.activity[this.strategy];
    const { before, after } = interventions[this.intervention];
    const sum = (lists) => lists.filter((list) => list.length).reduce((total, list) => total.map((value, bin) => value + list[bin]), Array(20).fill(0));
    const chosen = (lists) => (this.layer < 0 ? lists : [lists[this.layer]]);
    return { before: sum(chosen(before)), after: sum(chosen(after)) };
  }

  rows() {
    const { before, after } = this.counts;
    return before.map((count, bin) => ({ x0: bin / 20, x1: (bin + 1) / 20, before: count, after: after[bin] }));
  }

  spec() {
    const x = { field: "x0", type: "quantitative", title: "share of samples on which a unit fires", axis: { tickCount: 5, grid: false },
      scale: { domain: [0, 1] } };
    const y = { type: "quantitative", title: "units", axis: { tickCount: 4, tickMinStep: 1 } };
    const bars = (field, mark) => ({
      mark: { type: "rect", ...mark },
      encoding: { x, x2: { field: "x1" }, y: { ...y, field }, y2: { datum: 0 } },
    });
    return {
      height: 150,
      layer: [
        bars("after", { color: "var(--c0)", opacity: 0.55 }),
        bars("before", { fillOpacity: 0, stroke: "var(--ink)", strokeWidth: 1.5 }),
      ],
    };
  }

  places() {
    const { before, after } = this.counts;
    const [top, height] = [this.corner.top, this.view.height()];
    return before.map((count, bin) => {
      const [left, right] = [this.at("x", bin / 20), this.at("x", (bin + 1) / 20)];
      return {
        x: (left + right) / 2, y: top + 12, row: 0, column: bin,
        box: { left, top, width: right - left, height },
        head: `${bin * 5} to ${bin * 5 + 5}% of samples`,
        lines: () => [{ name: "before", text: String(count) }, { name: "after", text: String(after[bin]) }],
      };
    });
  }

  distance(place, x) {
    return Math.abs(place.x - x);
  }

  name() {
    const { before, after } = this.counts;
    return `${this.strategy}: how often units fire, before and after an intervention; ${before[0]} units fire on less than ` +
      `5% of samples before it, ${after[0]} after it. Arrow keys read the values.`;
  }
}
