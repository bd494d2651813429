"use strict";
for (const head of document.querySelectorAll("table.fit th")) {
  head.firstElementChild.addEventListener("click", () => {
    const column = head.cellIndex, body = head.closest("table").tBodies[0];
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentElement.children) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => {
      const text = row.cells[column].dataset.sort;
      return text === "inf" ? Infinity : Number(text);
    };
    const name = (row) => row.cells[0].textContent;
    const sign = up ? 1 : -1;
    const order = (a, b) => (value(a) === value(b) ? name(a).localeCompare(name(b)) : sign * (value(a) < value(b) ? -1 : 1));
    body.append(...[...body.rows].sort(order));
  });
}
