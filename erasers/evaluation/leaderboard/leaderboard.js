"use strict";
const said = document.getElementById("said");
const task = document.getElementById("task");

function filter() {
  for (const section of document.querySelectorAll(".task[id]"))
    section.hidden = task.value !== "" && section.id !== task.value;
}

function compare(one, other, head, sign) {
  const a = one.cells[head.cellIndex].dataset.key, b = other.cells[head.cellIndex].dataset.key;
  if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
  return sign * (head.dataset.kind === "text" ? (a < b ? -1 : a > b ? 1 : 0) : a - b);
}

function sort(table, head) {
  const first = head.dataset.first, last = first === "ascending" ? "descending" : "ascending";
  const way = head.getAttribute("aria-sort") === first ? last : first;
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", other === head ? way : "none");
  for (const body of table.tBodies)
    body.append(...[...body.rows].sort((a, b) => compare(a, b, head, way === "ascending" ? 1 : -1)));
  said.textContent = `Sorted by ${head.textContent.trim()}, ${way}; row 0 and references stay on top.`;
}

function light(event) {
  const row = event.target.closest("[data-row]")?.dataset.row;
  for (const lit of document.querySelectorAll(".lit")) lit.classList.remove("lit");
  if (row !== undefined)
    for (const one of event.target.closest(".task").querySelectorAll(`[data-row="${CSS.escape(row)}"]`))
      one.classList.add("lit");
}

for (const table of document.querySelectorAll(".board"))
  for (const button of table.tHead.querySelectorAll("button"))
    button.addEventListener("click", () => sort(table, button.parentElement));
task.addEventListener("change", () => {
  filter();
  said.textContent = `Showing ${task.selectedOptions[0].textContent}.`;
});
document.addEventListener("pointerover", light);
document.getElementById("controls").hidden = false;
filter();
