// Sorts the table of cells by a click on a heading and filters it by words; the page is whole without it.
(() => {
  const table = document.getElementById("cells");
  if (!table) return;
  const body = table.tBodies[0], rows = [...body.rows], headings = [...table.tHead.rows[0].cells];
  const filter = document.getElementById("filter"), shown = document.getElementById("shown");

  const valueOf = (row, column) => {
    const text = row.cells[column].textContent.trim().replaceAll("\u2212", "-");
    if (text === "" || text === "\u2013") return null;
    const number = Number(text.split(" \u00b1 ")[0]);
    return Number.isNaN(number) ? text : number;
  };
  const compare = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1);

  const sort = (column) => {
    const heading = headings[column], rises = heading.getAttribute("aria-sort") !== "ascending";
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", rises ? "ascending" : "descending");
    const keyed = rows.map((row, place) => [valueOf(row, column), place, row]);
    keyed.sort(([a, i], [b, j]) => {
      if (a === null || b === null) return (a === null) - (b === null) || i - j; // what is missing stays last
      return (rises ? 1 : -1) * compare(a, b) || i - j;
    });
    body.append(...keyed.map(([, , row]) => row));
  };

  const show = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    shown.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} cells`;
  };

  headings.forEach((heading, column) => {
    heading.tabIndex = 0;
    heading.addEventListener("click", () => sort(column));
    heading.addEventListener("keydown", (event) => event.key === "Enter" && sort(column));
  });
  filter.addEventListener("input", show);
  filter.parentElement.hidden = false;
  show();
})();
