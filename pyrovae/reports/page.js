
"use strict";
// A click on a column's head sorts the rows by it: upwards, downwards, and the third time as they were.
const MISSING = new Set(["", "unknown", "nan", "none"]);
const NUMBER = /^([-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:e[-+]?\d+)?)%?(?: \(.*\)| to .*)?$/i; // with an error, or an interval

function numberIn(text) {
  if (text === "no noise") return Infinity; // of a ratio of signal to noise
  const infinite = /^([-+]?)inf/i.exec(text);
  if (infinite) return infinite[1] === "-" ? -Infinity : Infinity;
  const found = NUMBER.exec(text);
  return found ? Number(found[1].replaceAll(",", "")) : null;
}

function compared(a, b, numeric) {
  if (!numeric) return a.localeCompare(b, "en", { numeric: true });
  const [one, other] = [numberIn(a), numberIn(b)];
  return one === other ? 0 : one < other ? -1 : 1;
}

function sort(table, column, direction) {
  const body = table.tBodies[0];
  const textOf = (row) => row.cells[column].textContent.trim();
  const isMissing = (row) => MISSING.has(textOf(row).toLowerCase());
  const rows = [...table.rowsAsTheyWere];
  if (direction) {
    const known = rows.filter((row) => !isMissing(row));
    const numeric = known.every((row) => numberIn(textOf(row)) !== null);
    known.sort((a, b) => direction * compared(textOf(a), textOf(b), numeric));
    rows.splice(0, rows.length, ...known, ...rows.filter(isMissing)); // what is missing comes last either way
  }
  body.append(...rows);
}

for (const table of document.querySelectorAll("table")) {
  table.rowsAsTheyWere = [...table.tBodies[0].rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      const direction = before === null ? 1 : before === "ascending" ? -1 : 0;
      if (direction) head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      sort(table, column, direction);
    });
  });
}

// On paper nothing can be unfolded.
const folded = [];
addEventListener("beforeprint", () => {
  folded.push(...document.querySelectorAll("details:not([open])"));
  folded.forEach((details) => (details.open = true));
});
addEventListener("afterprint", () => folded.splice(0).forEach((details) => (details.open = false)));
