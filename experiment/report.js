"use strict";
// Tables are whole without this. With it they are sorted by their headers and filtered by a text.
{
  const ORDERS = ["none", "ascending", "descending"];
  const FEWEST_FILTERED = 12;
  const collator = new Intl.Collator("en", { numeric: true });

  const textOf = (row, column) => row.cells[column].textContent.trim();

  // What is not known stands last in both orders.
  function compared(one, other, column, isNumber) {
    const texts = [textOf(one, column), textOf(other, column)];
    const unknown = texts.map((text) => (isNumber ? Number.isNaN(parseFloat(text)) : text === "-"));
    if (unknown[0] || unknown[1]) return { difference: unknown[0] - unknown[1], isUnknown: true };
    const difference = isNumber ? parseFloat(texts[0]) - parseFloat(texts[1]) : collator.compare(...texts);
    return { difference, isUnknown: false };
  }

  function makeSortable(table) {
    const headers = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    const rows = [...body.rows];
    headers.forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      header.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const order = ORDERS[(ORDERS.indexOf(header.getAttribute("aria-sort")) + 1) % ORDERS.length];
        for (const each of headers) each.setAttribute("aria-sort", each === header ? order : "none");
        const isNumber = header.classList.contains("number");
        const sorted = [...rows];
        if (order !== "none") {
          sorted.sort((one, other) => {
            const { difference, isUnknown } = compared(one, other, column, isNumber);
            return order === "descending" && !isUnknown ? -difference : difference;
          });
        }
        body.append(...sorted);
      });
    });
  }

  function makeFiltered(table) {
    const rows = [...table.tBodies[0].rows];
    if (rows.length < FEWEST_FILTERED) return;
    const label = document.createElement("label");
    const input = document.createElement("input");
    const count = document.createElement("output");
    label.className = "filter";
    input.type = "search";
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase();
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
      count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
    });
    label.append("Filter ", input, " ", count);
    table.parentElement.before(label);
  }

  document.documentElement.classList.add("with-script");
  for (const table of document.querySelectorAll("table")) {
    makeSortable(table);
    makeFiltered(table);
  }
}
