"""What tests of the page ask a browser for, and names of strategies."""

MANY = [f"method-{index}:option_number={index}" for index in range(26)]

ACCURACY = 'section figure[data-key="learning_accuracy"]'
LINES = "return document.querySelectorAll(arguments[0] + ' .mark-line path').length"

WIDE = """const width = document.documentElement.clientWidth;
return { page: document.documentElement.scrollWidth, width,
  outside: [...document.querySelectorAll("body *")].filter((found) => {
    if (found.closest(".wide, #chips, .skip, .said, svg")) return false;
    const box = found.getBoundingClientRect();
    return box.width && (box.right > width + 1 || box.left < -1);
  }).map((found) => found.outerHTML.slice(0, 120)) }"""

CONTRAST = """
const luminance = (color) => {
  const parts = color.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
};
const ratio = (one, other) => {
  const [light, dark] = [luminance(one), luminance(other)].sort((a, b) => b - a);
  return (light + 0.05) / (dark + 0.05);
};
const ground = (found) => {
  for (let at = found; at; at = at.parentElement) {
    const color = getComputedStyle(at).backgroundColor;
    if (!/, 0\\)$/.test(color) && color !== "transparent") return color;
  }
  return "rgb(255, 255, 255)";
};
const faint = [];
for (const found of document.querySelectorAll("body *")) {
  const own = [...found.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!own || !found.checkVisibility() || found.closest("script, style, .role-mark")) continue;
  const style = getComputedStyle(found);
  const color = found.closest("svg") ? style.fill : style.color;
  const behind = ground(found.closest("svg")?.parentElement ?? found);
  if (ratio(color, behind) < 4.5) faint.push(found.outerHTML.slice(0, 120));
}
const panel = getComputedStyle(document.querySelector("figure")).backgroundColor;
const probe = document.createElement("i");
document.body.append(probe);
const lines = {};
for (const name of ["naive", "fresh", "unchosen", "c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7"]) {
  probe.style.color = `var(--${name})`;
  lines[name] = ratio(getComputedStyle(probe).color, panel);
}
probe.remove();
return { faint: [...new Set(faint)], lines, panel: luminance(panel), ground: luminance(ground(document.body)) };
"""
