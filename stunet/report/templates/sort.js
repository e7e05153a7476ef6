// A click on a heading sorts its table; a second one turns the order round. Unknown values stay last.
document.addEventListener("click", (event) => {
  const head = event.target.closest("th button")?.parentElement;
  if (!head) return;
  const table = head.closest("table"), index = head.cellIndex;
  const order = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const key = (row) => {
    const cell = row.cells[index], n = cell.dataset.n;
    return n === undefined ? cell.textContent.toLowerCase() : n === "" ? null : Number(n);
  };
  const compare = (a, b) => {
    if (a[0] === null || b[0] === null) return (a[0] === null) - (b[0] === null);
    return order * (a[0] > b[0] ? 1 : a[0] < b[0] ? -1 : 0);
  };
  const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]).sort(compare);
  table.tBodies[0].append(...rows.map((pair) => pair[1]));
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order === 1 ? "ascending" : "descending");
});
