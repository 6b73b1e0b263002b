// Tables that sort by a click on a heading, and show their less common columns on demand.

function value(row, column) {
  const cell = row.cells[column];
  if (!("value" in cell.dataset)) return cell.textContent.trim();
  return cell.dataset.value === "" ? null : Number(cell.dataset.value);
}

// What is undefined stays at the end, whatever the direction.
function compare(one, other, direction) {
  if (one === null || other === null) return (one === null) - (other === null);
  if (typeof one === "string") return direction * one.localeCompare(other, "en", { numeric: true });
  return direction * (one - other);
}

function sort(table, heading) {
  const column = heading.cellIndex;
  const numeric = heading.dataset.kind === "number";
  const before = heading.getAttribute("aria-sort");
  const after = before === "descending" ? "ascending" : before === "ascending" ? "descending" : numeric ? "descending" : "ascending";
  for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", after);
  const direction = after === "ascending" ? 1 : -1;
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort((one, other) => compare(value(one, column), value(other, column), direction)));
}

function prepareTables() {
  for (const table of document.querySelectorAll("table.sortable"))
    for (const heading of table.tHead.rows[0].cells) {
      const button = element("button", { type: "button", onclick: () => sort(table, heading) });
      button.append(...heading.childNodes);
      heading.append(button);
    }
  for (const box of document.querySelectorAll("input[data-columns]")) {
    const table = document.getElementById(box.dataset.columns);
    const apply = () => {
      table.classList.toggle("brief", !box.checked);
      memory.write(box.dataset.columns, box.checked);
    };
    box.checked = memory.read(box.dataset.columns) ?? false;
    box.closest("label").hidden = false;
    box.addEventListener("change", apply);
    apply();
  }
}
