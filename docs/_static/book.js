// Tables that can be sorted and filtered, and a search that works from a folder too. No library, nothing fetched.

if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false; // excerpts are fetched, which browsers refuse for files
}

function valueOf(row, column) {
  const cell = row.cells[column];
  const text = (cell && (cell.dataset.sort ?? cell.textContent).trim()) || "";
  const number = Number(text.replace(/,/g, ""));
  return text !== "" && !Number.isNaN(number) ? number : text;
}

function compared(one, other) {
  if (typeof one === "number" && typeof other === "number") return one - other;
  return String(one).localeCompare(String(other), undefined, { numeric: true });
}

function sortBy(table, column, head) {
  const ascending = head.getAttribute("aria-sort") !== "ascending";
  for (const each of head.parentElement.cells) each.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const body = table.tBodies[0];
  const rows = [...body.rows].sort((one, other) => compared(valueOf(one, column), valueOf(other, column)));
  body.append(...(ascending ? rows : rows.reverse()));
}

function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sortBy(table, column, head));
    head.append(button);
  });
}

function addFilter(table, box) {
  const field = document.createElement("input");
  field.type = "search";
  field.className = "dk-field";
  field.placeholder = "Filter these rows";
  field.setAttribute("aria-label", "Filter these rows");
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    for (const row of table.tBodies[0].rows) {
      row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    }
  });
  box.before(field);
}

function inBox(table) {
  const known = table.closest(".pst-scrollable-table-container, .dk-scroll");
  if (known) return known;
  const box = document.createElement("div");
  box.className = "dk-scroll";
  table.before(box);
  box.append(table);
  return box;
}

// What scrolls can be reached with the keyboard.
function reachable(box) {
  if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("table.dk-sortable").forEach((table) => {
    const box = inBox(table);
    makeSortable(table);
    if (table.classList.contains("dk-filter")) addFilter(table, box);
  });
  for (const arrow of document.querySelectorAll(".bd-sidebar-primary summary")) {
    arrow.setAttribute("aria-label", "Pages below"); // the theme gives it a picture and no name
  }
  document.querySelectorAll(".bd-article :is(.dk-scroll, .pst-scrollable-table-container, .cell_output, .formula)").forEach(reachable);
});
