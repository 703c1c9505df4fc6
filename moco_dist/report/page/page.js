"use strict";
/* Bring the page to life: axes, the table of runs, the map, and new rows of running jobs. */

function wireToolbar() {
  const form = document.getElementById("toolbar");
  form.addEventListener("submit", (event) => event.preventDefault());
  const hasEpochs = page.runs.some((run) => run.epochSteps);
  form.querySelector('[value="epoch"]').disabled = !hasEpochs;
  if (!hasEpochs) state.axis = "step";
  form.elements.axis.value = state.axis;
  form.elements.log.checked = state.log;
  form.elements.smooth.checked = state.smooth;
  form.addEventListener("change", (event) => {
    if (event.target.name === "from" || event.target.name === "to") {
      const [from, to] = ["from", "to"].map((name) => form.elements[name].value);
      const whole = from === "" && to === "";
      const ends = [...state.panels.values()].flatMap((plot) => [plot.data[0][0], plot.data[0].at(-1)]);
      const range = [from === "" ? Math.min(...ends) : Number(from), to === "" ? Math.max(...ends) : Number(to)];
      if (whole || range[0] < range[1]) zoom(whole ? null : range);
      return;
    }
    if (form.elements.axis.value !== state.axis) zoom(null);
    Object.assign(state, {
      axis: form.elements.axis.value,
      log: form.elements.log.checked,
      smooth: form.elements.smooth.checked,
    });
    drawAnew();
  });
  form.elements.reset.addEventListener("click", () => zoom(null));
}

const nameOf = (header) => header.textContent.trim();

/* Order the rows by a column: numbers by size, missing ones last, and again in the other direction. */
function sortBy(header, descending) {
  const table = header.closest("table"),
    column = header.cellIndex,
    body = table.tBodies[0];
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const keyOf = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
  const compare = (one, other) => {
    const [a, b] = [keyOf(one), keyOf(other)];
    if (a === "" || b === "") return (a === "") - (b === "");
    const order = a - b;
    return (Number.isNaN(order) ? a.localeCompare(b, "en", { numeric: true }) : order) * (descending ? -1 : 1);
  };
  body.append(...[...body.rows].sort(compare));
  state.sort = { name: nameOf(header), descending };
}

function filterRuns() {
  const form = document.getElementById("filters"),
    rows = [...document.querySelectorAll("#table tbody tr")];
  const values = Object.fromEntries(new FormData(form));
  const [key, wanted] = (values.pattern ?? "").split(/=(.*)/s).map((part) => part.trim());
  state.hidden = new Set();
  let count = 0;
  for (const row of rows) {
    const run = page.runs[Number(row.dataset.run)];
    let fits = run.name.toLowerCase().includes((values.name ?? "").toLowerCase());
    for (const [name, value] of Object.entries(values)) {
      if (name.startsWith("key:") && value !== "") fits &&= run.settings[name.slice(4)] === value;
    }
    if (key && wanted) fits &&= run.settings[key] === wanted;
    row.hidden = !fits;
    count += fits;
    if (!fits || !row.querySelector("input").checked) state.hidden.add(run.number);
  }
  document.getElementById("count").textContent = `${count} of ${rows.length}`;
  state.filters = values;
  drawAnew();
}

function wireTable() {
  const table = document.getElementById("table"),
    form = document.getElementById("filters");
  if (!table) return;
  for (const header of table.tHead.rows[0].cells) {
    header
      .querySelector("button")
      .addEventListener("click", () => sortBy(header, header.getAttribute("aria-sort") === "ascending"));
  }
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", filterRuns);
  form.addEventListener("reset", () => setTimeout(filterRuns));
  table.addEventListener("change", filterRuns);
  for (const row of table.tBodies[0].rows)
    row.querySelector("input").checked = !state.unchecked?.has(page.runs[Number(row.dataset.run)].folder);
  const sorted = [...table.tHead.rows[0].cells].find((header) => nameOf(header) === state.sort?.name);
  if (sorted) sortBy(sorted, state.sort.descending);
  if (state.filters) {
    for (const [name, value] of Object.entries(state.filters))
      if (form.elements[name]) form.elements[name].value = value;
    filterRuns();
  }
}

/* A click on a class dims the others on the map. */
function wireMap() {
  const buttons = [...document.querySelectorAll("button.swatch")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const alone = button.getAttribute("aria-pressed") !== "true";
      for (const other of buttons) other.setAttribute("aria-pressed", String(alone && other === button));
      for (const group of document.querySelectorAll(".dots"))
        group.classList.toggle("dim", alone && group.dataset.class !== button.dataset.class);
    });
  }
}

function start() {
  page = JSON.parse(document.getElementById("data").textContent);
  wireToolbar();
  wireTable();
  wireMap();
  drawAnew();
}

/* Take over what a newer page shows, and keep what the reader has set: axes, order, filters, open sections. */
function takeOver(text) {
  const newer = new DOMParser().parseFromString(text, "text/html").querySelector("main");
  const open = new Map([...document.querySelectorAll("details[id]")].map((each) => [each.id, each.open]));
  const changed = document.getElementById("only-changed")?.checked,
    range = state.range;
  state.unchecked = new Set(
    [...document.querySelectorAll("#table tbody tr")]
      .filter((row) => !row.querySelector("input").checked)
      .map((row) => page.runs[Number(row.dataset.run)].folder),
  );
  document.querySelector("main").replaceWith(document.importNode(newer, true));
  for (const [id, isOpen] of open) if (document.getElementById(id)) document.getElementById(id).open = isOpen;
  if (changed !== undefined && document.getElementById("only-changed"))
    document.getElementById("only-changed").checked = changed;
  start();
  if (range) zoom(range);
}

function watch() {
  let tag = "";
  const look = async () => {
    let line = "Live: the page looks for new rows every few seconds.";
    try {
      const headers = tag ? { "If-None-Match": tag } : {};
      const answer = await fetch(location.href, { cache: "no-store", headers, signal: AbortSignal.timeout(60000) });
      if (answer.status === 200) {
        const first = tag === "";
        tag = answer.headers.get("ETag") ?? "";
        const text = await answer.text();
        if (!first) takeOver(text);
      } else if (answer.status !== 304) line = `The server answers ${answer.status}; what is shown may be old.`;
    } catch {
      line = "The server does not answer; what is shown is old.";
    }
    document.getElementById("connection").textContent = line;
    setTimeout(look, page.watchSeconds * 1000);
  };
  setTimeout(look, page.watchSeconds * 1000);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAnew);
addEventListener("resize", () => {
  for (const [figure, plot] of state.panels)
    plot.setSize({ width: figure.querySelector(".plot").clientWidth, height: heightOf(figure) });
});
addEventListener("beforeprint", () => {
  for (const figure of document.querySelectorAll(".panel")) if (!state.panels.has(figure)) draw(figure);
});
start();
if ("watched" in document.body.dataset) watch();
