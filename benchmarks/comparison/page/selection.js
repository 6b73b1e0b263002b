// Which strategies the plots show, and how each is drawn: the same in every plot of the page.

const page = JSON.parse(document.getElementById("data").textContent);
const COLOURS = 8;
const DASHES = [[1, 0], [7, 3], [2, 2.5], [8, 3, 2, 3]];

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

// What should outlast a reload, above all while the page is rewritten.
const memory = {
  key: "plasticity " + location.pathname,
  read(name) {
    try {
      return JSON.parse(sessionStorage.getItem(this.key) ?? "{}")[name];
    } catch {
      return undefined;
    }
  },
  write(name, value) {
    try {
      const all = JSON.parse(sessionStorage.getItem(this.key) ?? "{}");
      sessionStorage.setItem(this.key, JSON.stringify({ ...all, [name]: value }));
    } catch {
      // Without storage the page forgets.
    }
  },
};

const selection = {
  names: [...new Set(page.sections.flatMap((section) => section.strategies))],
  slots: new Map(), // strategy: number of its colour and dashes; the strategies that are chosen
  hidden: new Set(), // chosen, and switched off in the legend
  bands: true, // whether curves have their intervals
  emphasised: "", // the one that the pointer or the keyboard is on in the legend
  listeners: [],

  restore() {
    const [chosen, hidden] = [memory.read("chosen") ?? [], memory.read("hidden") ?? []];
    this.bands = memory.read("bands") ?? true;
    const kept = chosen.filter((name) => this.names.includes(name));
    this.choose(kept.length ? kept : page.chosen);
    for (const name of hidden) if (this.slots.has(name)) this.toggle(name);
  },

  // Strategies that stay keep their colours; new ones take the first that are free.
  choose(names) {
    for (const name of [...this.slots.keys()]) if (!names.includes(name)) this.slots.delete(name);
    for (const name of this.names.filter((name) => names.includes(name) && !this.slots.has(name))) {
      const taken = new Set(this.slots.values());
      let slot = 0;
      while (taken.has(slot)) slot += 1;
      this.slots.set(name, page.references.includes(name) ? name : slot);
    }
    this.hidden = new Set([...this.hidden].filter((name) => this.slots.has(name)));
    this.tell();
  },

  toggle(name) {
    if (!this.hidden.delete(name)) this.hidden.add(name);
    this.tell();
  },

  emphasise(name) {
    this.emphasised = this.hidden.has(name) ? "" : name;
    for (const chart of Chart.all) chart.emphasise(this.emphasised);
  },

  tell() {
    memory.write("chosen", this.chosen);
    memory.write("hidden", [...this.hidden]);
    memory.write("bands", this.bands);
    for (const listener of this.listeners) listener();
  },

  get chosen() {
    return this.names.filter((name) => this.slots.has(name));
  },

  get shown() {
    return this.chosen.filter((name) => !this.hidden.has(name));
  },

  style(name) {
    const slot = this.slots.get(name);
    if (slot === undefined) return { color: "var(--unchosen)", dash: DASHES[0] };
    if (typeof slot === "string") return { color: `var(--${slot})`, dash: DASHES[0] };
    return { color: `var(--c${slot % COLOURS})`, dash: DASHES[Math.floor(slot / COLOURS) % DASHES.length] };
  },
};

function swatch({ color, dash }) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  for (const [name, value] of Object.entries({ width: 20, height: 10, class: "swatch", "aria-hidden": "true" }))
    svg.setAttribute(name, value);
  for (const [name, value] of Object.entries({ x1: 0, x2: 20, y1: 5, y2: 5, "stroke-dasharray": dash.join(" ") }))
    line.setAttribute(name, value);
  line.style.stroke = color;
  svg.append(line);
  return svg;
}

function drawLegend() {
  const legend = document.getElementById("chips");
  const focused = legend.contains(document.activeElement) ? document.activeElement.dataset.strategy : null;
  legend.replaceChildren(
    ...selection.chosen.map((name) =>
      element("li", {}, element("button", {
        type: "button",
        class: "chip",
        "data-strategy": name,
        "aria-pressed": String(!selection.hidden.has(name)),
        title: selection.hidden.has(name) ? `show ${name}` : `hide ${name}`,
        onclick: () => selection.toggle(name),
        onpointerenter: () => selection.emphasise(name),
        onpointerleave: () => selection.emphasise(""),
        onfocus: () => selection.emphasise(name),
        onblur: () => selection.emphasise(""),
      }, swatch(selection.style(name)), element("span", {}, name))),
    ),
  );
  if (focused) [...legend.querySelectorAll("button")].find((chip) => chip.dataset.strategy === focused)?.focus();
  for (const box of document.querySelectorAll("#picker input[value]")) box.checked = selection.slots.has(box.value);
  document.getElementById("bands").checked = selection.bands;
  for (const place of document.querySelectorAll("[data-swatch]"))
    place.replaceChildren(swatch(selection.style(place.dataset.swatch)));
}

function preparePicker() {
  const picker = document.getElementById("picker");
  const boxes = [...picker.querySelectorAll("input[value]")];
  const choose = () => selection.choose(boxes.filter((box) => box.checked).map((box) => box.value));
  for (const box of boxes) box.addEventListener("change", choose);
  document.getElementById("bands").addEventListener("change", (event) => {
    selection.bands = event.target.checked;
    selection.tell();
  });
  const presets = { start: page.chosen, all: selection.names, references: page.references };
  for (const button of picker.querySelectorAll("button[data-preset]"))
    button.addEventListener("click", () => {
      selection.hidden.clear();
      selection.choose(presets[button.dataset.preset]);
    });
  picker.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && picker.open) {
      picker.open = false;
      picker.querySelector("summary").focus();
    }
  });
  document.addEventListener("pointerdown", (event) => {
    if (picker.open && !picker.contains(event.target)) picker.open = false;
  });
}
