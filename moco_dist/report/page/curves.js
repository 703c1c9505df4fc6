"use strict";
/* Draw the panels with uPlot. Text reaches the page by textContent alone, since names come from runs. */

const state = { axis: "step", log: false, smooth: true, range: null, hidden: new Set(), panels: new Map() };
let page = null;

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colour = (number) => css(`--c${number % 10}`);
const element = (tag, className, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};

function shown(value, unit) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (unit === "share") return `${Number((100 * value).toPrecision(Math.abs(value) >= 0.0995 ? 4 : 3))} %`;
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2);
  return value.toLocaleString("en", { maximumFractionDigits: size >= 1000 ? 0 : size >= 10 ? 2 : 4 });
}

/* The runs that are drawn: one whose epochs are not known has no place on an axis of epochs. */
const visibleRuns = () =>
  page.runs.filter((run) => !state.hidden.has(run.number) && (state.axis === "step" || run.epochSteps));

const place = (run, steps) => (state.axis === "step" ? steps : steps.map((step) => step / run.epochSteps));

/* The series of a panel: one for each run and figure; its smoothed course, where it has one, is drawn on top of it. */
function seriesOf(panel) {
  const made = [],
    alone = page.runs.length === 1;
  for (const run of visibleRuns()) {
    panel.figures.forEach((figure, number) => {
      const curve = run.curves[figure];
      if (!curve) return;
      const label = alone
        ? panel.labels[number]
        : panel.figures.length > 1
          ? `${run.name}, ${panel.labels[number]}`
          : run.name;
      const style = { label, colour: alone ? number : run.colour, dash: alone || !number ? null : [5, 4], curve };
      const positive = (values) => (state.log ? values.map((value) => (value > 0 ? value : null)) : values);
      const smooth = state.smooth && curve.smooth[0].length > 0;
      made.push({ ...style, faint: smooth, table: [place(run, curve.points[0]), positive(curve.points[1])] });
      if (smooth)
        made.push({ ...style, over: true, table: [place(run, curve.smooth[0]), positive(curve.smooth[1])] });
    });
  }
  return made;
}

function withAlpha(hex, alpha) {
  const [red, green, blue] = [1, 3, 5].map((from) => parseInt(hex.slice(from, from + 2), 16));
  return `rgba(${red}, ${green}, ${blue}, ${alpha})`;
}

/* Bands where something was wrong (of several runs, a line each at the top), and dashed lines at restarts. */
function drawMarks(plot) {
  const context = plot.ctx,
    box = plot.bbox,
    runs = visibleRuns();
  const at = (run, step) => plot.valToPos(place(run, [step])[0], "x", true);
  context.save();
  context.beginPath();
  context.rect(box.left, box.top, box.width, box.height);
  context.clip();
  const alone = page.runs.length === 1,
    thick = 3 * devicePixelRatio;
  let top = box.top;
  for (const run of runs) {
    for (const mark of run.marks) {
      const left = at(run, mark.from),
        width = Math.max(2, at(run, mark.to) - left);
      context.fillStyle = withAlpha(css("--warn"), 0.1);
      if (alone) context.fillRect(left, box.top, width, box.height);
      context.fillStyle = alone ? css("--warn") : colour(run.colour);
      context.fillRect(left, top, width, thick);
    }
    if (!alone && run.marks.length) top += thick + devicePixelRatio;
    context.strokeStyle = css("--ink");
    context.lineWidth = devicePixelRatio;
    context.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
    for (const start of run.restarts) {
      const x = Math.round(at(run, start)) + 0.5;
      context.beginPath();
      context.moveTo(x, box.top);
      context.lineTo(x, box.top + box.height);
      context.stroke();
    }
    context.setLineDash([]);
  }
  context.restore();
}

/* The index at which a series has a value, nearest to an index of the common axis. */
function nearestIndex(values, index) {
  for (let away = 0; away < values.length; away++) {
    for (const at of [index - away, index + away]) if (values[at] !== undefined && values[at] !== null) return at;
  }
  return index;
}

function showTip(plot, tip, series, panel) {
  const { left, top, idx } = plot.cursor;
  if (idx === null || idx === undefined || left < 0) {
    tip.hidden = true;
    return;
  }
  const x = plot.posToVal(left, "x");
  const heading =
    state.axis === "epoch" ? `epoch ${x.toFixed(2)}` : `step ${Math.round(plot.data[0][idx]).toLocaleString("en")}`;
  const lines = [];
  series.forEach((one, number) => {
    if (one.over) return;
    const values = plot.data[number + 1],
      value = values[nearestIndex(values, idx)];
    lines.push([one, value]);
  });
  if (page.runs.length > 1) lines.sort((one, other) => (other[1] ?? -Infinity) - (one[1] ?? -Infinity));
  tip.replaceChildren(element("div", "what", heading));
  for (const [one, value] of lines.slice(0, 12)) {
    const line = element("div"),
      name = element("span", "what");
    name.append(element("span", `swatch c${one.colour % 10}`), document.createTextNode(` ${one.label}`));
    line.append(name, element("strong", "", shown(value, panel.unit)));
    tip.append(line);
  }
  tip.hidden = false;
  const inPlot = plot.bbox.left / devicePixelRatio + left,
    space = plot.root.clientWidth;
  tip.style.top = `${Math.max(0, top - 10)}px`;
  tip.style.left = inPlot > space / 2 ? "" : `${inPlot + 14}px`;
  tip.style.right = inPlot > space / 2 ? `${space - inPlot + 14}px` : "";
}

function legendOf(figure, series, panel) {
  const legend = figure.querySelector(".legend");
  legend.replaceChildren();
  if (page.runs.length > 1 && panel.figures.length < 2) return;
  if (page.runs.length > 1) {
    legend.textContent = panel.labels.map((label, number) => (number ? `dashed: ${label}` : label)).join(", ");
    return;
  }
  for (const one of series.filter((each) => !each.over)) {
    const entry = element("span");
    if (panel.figures.length > 1) entry.append(element("span", `swatch c${one.colour % 10}`));
    entry.append(
      document.createTextNode(panel.figures.length > 1 ? one.label : "last"),
      element("b", "", shown(one.curve.last, panel.unit)),
    );
    legend.append(entry);
  }
}

function described(panel, series) {
  const parts = series
    .filter((one) => !one.over)
    .slice(0, 12)
    .map((one) => {
      const [[lowStep, low], [highStep, high]] = [one.curve.low, one.curve.high];
      const [last, lowest, highest] = [one.curve.last, low, high].map((value) => shown(value, panel.unit));
      return `${one.label}: last ${last}, lowest ${lowest} at step ${lowStep}, highest ${highest} at step ${highStep}`;
    });
  return `${panel.title}. ${parts.join("; ")}`;
}

/* The range of an axis: uPlot's own, but for values that are all zero, which it would draw on an axis up to 100. */
function rangeOf(_, low, high) {
  if (low === null) return [null, null];
  return low === 0 && high === 0 ? [0, 1] : uPlot.rangeNum(low, high, 0.1, true);
}

const heightOf = (figure) => (figure.matches(".first .panel:first-child") ? 270 : 190);

function draw(figure) {
  const number = Number(figure.dataset.panel),
    panel = page.panels[number],
    host = figure.querySelector(".plot");
  state.panels.get(figure)?.destroy();
  state.panels.delete(figure);
  host.replaceChildren();
  const series = seriesOf(panel);
  legendOf(figure, series, panel);
  if (!series.some((one) => one.table[1].some((value) => value !== null))) {
    host.append(
      element(
        "p",
        "empty",
        state.log && series.length ? "No value above zero, which a log axis needs." : "No row has this figure.",
      ),
    );
    return;
  }
  const tip = element("div", "tip");
  tip.hidden = true;
  const axis = {
    stroke: css("--muted"),
    grid: { stroke: css("--line"), width: 1 },
    ticks: { show: false },
    font: `11px ${getComputedStyle(document.body).fontFamily}`,
  };
  const lines = series.map((one) => ({
    label: one.label,
    stroke: one.faint ? withAlpha(colour(one.colour), 0.32) : colour(one.colour),
    width: one.over ? 2 : 1.3,
    dash: one.dash,
    spanGaps: true,
    points: { show: one.table[0].length < 40 && !one.over, size: 5 },
  }));
  const options = {
    width: host.clientWidth,
    height: heightOf(figure),
    legend: { show: false },
    scales: {
      x: { time: false, ...(state.range ? { min: state.range[0], max: state.range[1] } : {}) },
      y: state.log ? { distr: 3 } : { range: rangeOf },
    },
    axes: [
      { ...axis, size: 26, space: 60 },
      {
        ...axis,
        size: panel.unit === "share" ? 50 : 58,
        values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : shown(tick, panel.unit))),
      },
    ],
    series: [{}, ...lines],
    padding: [10, 12, 0, 0],
    cursor: {
      sync: { key: "steps", setSeries: false },
      y: false,
      drag: { x: true, y: false, setScale: false },
      points: { show: false },
      bind: { dblclick: () => () => zoom(null) },
    },
    hooks: {
      drawAxes: [drawMarks],
      setCursor: [(plot) => showTip(plot, tip, series, panel)],
      setSelect: [
        (plot) => {
          if (plot.select.width < 5) return;
          const ends = [plot.select.left, plot.select.left + plot.select.width].map((left) =>
            plot.posToVal(left, "x"),
          );
          plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          zoom(ends);
        },
      ],
    },
  };
  const plot = new uPlot(options, uPlot.join(series.map((one) => one.table)), host);
  plot.root.append(tip);
  host.setAttribute("role", "img");
  host.setAttribute("aria-label", described(panel, series));
  plot.root.addEventListener("mouseleave", () => {
    tip.hidden = true;
  });
  state.panels.set(figure, plot);
}

/* Panels are drawn when they come into sight, so that a page with many of them opens at once. */
const sight = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) if (entry.isIntersecting && !state.panels.has(entry.target)) draw(entry.target);
  },
  { rootMargin: "300px" },
);

function drawAnew() {
  for (const plot of state.panels.values()) plot.destroy();
  state.panels.clear();
  sight.disconnect();
  for (const figure of document.querySelectorAll(".panel")) sight.observe(figure);
}

/* Show a part of the course in all panels; null shows all of it. */
function zoom(range) {
  state.range = range;
  const form = document.getElementById("toolbar");
  for (const [number, name] of ["from", "to"].entries()) {
    form.elements[name].value = range
      ? state.axis === "epoch"
        ? range[number].toFixed(2)
        : Math.round(range[number])
      : "";
  }
  for (const plot of state.panels.values()) {
    const xs = plot.data[0];
    plot.setScale("x", range ? { min: range[0], max: range[1] } : { min: xs[0], max: xs.at(-1) });
  }
}
