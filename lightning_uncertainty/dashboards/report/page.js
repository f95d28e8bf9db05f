"use strict";
(() => {
  const run = JSON.parse(document.getElementById("run").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const fingers = matchMedia("(pointer: coarse)");
  const PATTERNS = ["", "/", "\\", "x", "-", "|", "+"]; // of areas, one for each line style
  const RATIOS = [ // ticks of gaps, for wide ranges first
    [0.01, 0.1, 0.5, 1, 2, 10, 100, 1000],
    [0.1, 0.2, 0.5, 1, 2, 5, 10],
    [0.5, 0.67, 0.8, 1, 1.25, 1.5, 2],
    [0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.25],
    [0.9, 0.95, 0.98, 1, 1.02, 1.05, 1.1],
    [0.97, 0.98, 0.99, 1, 1.01, 1.02, 1.03],
  ];
  const alone = new Set(); // tasks that are shown; all where it is empty
  let optima = true; // whether σ* is shown
  const views = []; // charts and their figures

  const theme = () => {
    const style = getComputedStyle(document.documentElement);
    return (name) => style.getPropertyValue(`--${name}`).trim();
  };
  const colour = (of, task) => (task === null ? of("ink") : of(`task-${run.tasks[task].style.colour}`));
  const dash = (task) => (task === null ? "" : run.tasks[task].style.dash);
  const shown = (trace) =>
    (trace.task === null || !alone.size || alone.has(trace.task)) && (optima || trace.look !== "dotted");

  const percent = (ratio, digits) => `${ratio > 1 ? "+" : ratio < 1 ? "−" : ""}${Math.abs(100 * (ratio - 1)).toFixed(digits)} %`;

  // what suits the range of the values that are shown, on a log axis
  function logAxis(chart) {
    const seen = chart.traces.filter(shown).flatMap((trace) => trace.y).filter((value) => value > 0).map(Math.log10);
    const [low, high] = seen.reduce(([least, most], log) => [Math.min(least, log), Math.max(most, log)], [Infinity, -Infinity]);
    if (chart.axis === "gap") {
      const widest = Math.max(high, -low);
      const tickvals = RATIOS[[1, 0.3, 0.1, 0.04, 0.013].filter((least) => widest <= least).length];
      const range = widest < 0.005 ? [-0.005, 0.005] : undefined; // a per cent at least
      return { type: "log", tickvals, ticktext: tickvals.map((ratio) => percent(ratio, 0)), ...(range && { range }) };
    }
    if (high - low < 2) return { type: "log", nticks: 3, tickformat: "~g" };
    return { type: "log", nticks: 7, exponentformat: "power", minexponent: 4, tickfont: { size: 9.6 } }; // plotly adds 25 %
  }

  // what is nearly linear below the least of the lines' peaks, and a logarithm above it, on both sides of zero
  function symlog(chart) {
    const peaks = chart.traces.map((trace) => trace.y.reduce((most, value) => Math.max(most, Math.abs(value ?? 0)), 0));
    const unit = 10 ** Math.floor(Math.log10(Math.min(...peaks.filter((peak) => peak > 0))));
    const to = (value) => (value === null ? null : Math.sign(value) * Math.log10(1 + Math.abs(value) / unit));
    return { to, unit, peak: Math.max(...peaks) };
  }

  function symlogAxis(chart) {
    const { to, unit, peak } = symlog(chart);
    const last = Math.floor(Math.log10(peak)), first = Math.log10(unit), every = Math.max(1, Math.ceil((last - first + 1) / 3));
    const powers = [];
    for (let power = last; power >= first - 1e-9; power -= every) powers.push(power);
    const values = [...powers.map((power) => -(10 ** power)), 0, ...powers.map((power) => 10 ** power)];
    const text = (value) => (value === 0 ? "0" : `${value < 0 ? "−" : ""}${Math.abs(Math.log10(Math.abs(value))) < 4 ? Math.abs(value).toPrecision(1) * 1 : `10<sup>${Math.round(Math.log10(Math.abs(value)))}</sup>`}`);
    return { tickvals: values.map(to), ticktext: values.map(text), zeroline: true };
  }

  function toTrace(chart, trace, of) {
    const stroke = colour(of, trace.task);
    const few = trace.x.length <= 40 && trace.look !== "area";
    const value = { gap: "%{text}", share: "%{y:.1f} %", symlog: "%{customdata:.4~g}" }[chart.axis] ?? "%{y:.4~g}";
    const name = (trace.look === "dotted" ? `${trace.name}, σ*` : trace.name).replaceAll("<", "&lt;");
    const common = {
      type: "scatter", name, x: trace.x, y: trace.y, visible: shown(trace), legendgroup: String(trace.task),
      mode: trace.look === "points" ? "markers" : few && trace.look === "line" ? "lines+markers" : "lines",
      line: { color: stroke, width: chart.small ? 1.75 : 2, dash: dash(trace.task).replace(/\d+/g, "$&px") || "solid" },
      marker: { color: stroke, size: 4 },
      hovertemplate: `${value}<extra>${name}</extra>`,
    };
    if (chart.axis === "symlog") Object.assign(common, { customdata: trace.y, y: trace.y.map(symlog(chart).to) });
    if (chart.axis === "gap") common.text = trace.y.map((ratio) => (ratio === null ? "" : percent(ratio, 1)));
    if (trace.look === "dotted") common.line = { color: stroke, width: 1.25, dash: "1px,3px" };
    if (trace.look === "dashed") common.line.dash = "4px,3px";
    if (trace.look === "points") common.marker = { color: stroke, size: 9, symbol: "diamond" };
    if (trace.look === "area") {
      const shape = PATTERNS[Math.floor(trace.task / 6) % PATTERNS.length];
      Object.assign(common, { stackgroup: "all", fillcolor: `${stroke}c8`, line: { color: of("card"), width: 0.5 } });
      if (shape) common.fillpattern = { shape, fgcolor: of("card"), bgcolor: `${stroke}c8`, size: 6, solidity: 0.25 };
    }
    return common;
  }

  function toLayout(chart, of) {
    const axis = { color: of("quiet"), gridcolor: of("line"), linecolor: of("line"), fixedrange: fingers.matches, automargin: true };
    const y = { ...axis, zeroline: false, ...(chart.axis === "log" || chart.axis === "gap" ? logAxis(chart) : { nticks: chart.small ? 4 : 6 }) };
    if (chart.axis === "symlog") Object.assign(y, symlogAxis(chart), { zerolinecolor: of("quiet") });
    if (chart.axis === "share") Object.assign(y, { ticksuffix: " %", range: [0, 100] });
    return {
      showlegend: false, hovermode: run.tasks.length > 10 ? "closest" : "x unified", dragmode: fingers.matches ? false : "zoom",
      paper_bgcolor: of("card"), plot_bgcolor: of("card"), margin: { l: 8, r: 12, t: 8, b: 8 },
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: of("quiet") },
      shapes: chart.axis === "gap" ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, layer: "below", line: { color: of("quiet"), width: 1 } }] : [],
      hoverlabel: { bgcolor: of("card"), bordercolor: of("line"), font: { color: of("ink") } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: of("quiet"), activecolor: of("ink") },
      xaxis: { ...axis, title: { text: "step", standoff: 6 }, showgrid: false, zeroline: false, ticks: "outside", tickcolor: of("line"), nticks: chart.small ? 5 : 8, spikecolor: of("quiet"), spikethickness: 1, spikedash: "solid", unifiedhovertitle: { text: "step %{x:d}" } },
      yaxis: y,
    };
  }

  const CONFIG = { responsive: true, displaylogo: false, displayModeBar: fingers.matches ? false : "hover", modeBarButtons: [["toImage", "resetScale2d"]] };

  function draw({ chart, figure }) {
    figure.hidden = !chart.traces.some(shown);
    if (figure.hidden) return null;
    const of = theme();
    const traces = chart.traces.map((trace) => toTrace(chart, trace, of));
    return Plotly.react(figure.querySelector(".plot"), traces, toLayout(chart, of), { ...CONFIG, toImageButtonOptions: { filename: chart.id, scale: 2 } });
  }

  function swatch(kind, dashes) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 28 10");
    svg.setAttribute("class", `swatch ${kind}`);
    svg.setAttribute("aria-hidden", "true");
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", dashes === "point" ? "M14 2L17 5L14 8L11 5Z" : "M1 5H27");
    if (dashes === "point") path.setAttribute("fill", "currentColor");
    else path.setAttribute("stroke-dasharray", dashes);
    svg.append(path);
    return svg;
  }

  function entry(kind, text, dashes, onclick) {
    const item = document.createElement(onclick ? "button" : "span");
    item.append(...(dashes === null ? [] : [swatch(kind, dashes)]), text);
    if (onclick) {
      item.type = "button";
      item.addEventListener("click", onclick);
    }
    return item;
  }

  function legend(chart) {
    const box = document.createElement("div");
    box.className = "legend";
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", "Tasks: those selected are shown alone in every chart");
    const tasks = [...new Set(chart.traces.map((trace) => trace.task))].filter((task) => task !== null);
    for (const task of chart.small ? [] : tasks) {
      const { name, style } = run.tasks[task];
      const item = entry(`c${style.colour}`, name, style.dash, () => {
        if (!alone.delete(task)) alone.add(task);
        show();
      });
      item.dataset.task = task;
      box.append(item);
    }
    if (tasks.length > 1 && !chart.small) {
      const item = entry("", "all tasks", null, () => {
        alone.clear();
        show();
      });
      item.dataset.all = "";
      box.append(item);
    }
    const looks = new Set(chart.traces.map((trace) => trace.look));
    if (looks.has("dotted")) {
      const item = entry("", "σ*", "1,3", () => {
        optima = !optima;
        show();
      });
      item.dataset.optima = "";
      box.append(item);
    }
    if (chart.id.includes("loss") && chart.id !== "loss" || chart.small) {
      const stages = { dashed: ["train", "4,3"], line: ["val", ""], points: ["test", "point"] };
      if (looks.size > 1) for (const look of looks) box.append(entry("", ...stages[look]));
    }
    return box;
  }

  function press() {
    for (const item of document.querySelectorAll(".legend button")) {
      const { task, all } = item.dataset;
      const on = task === undefined ? optima : alone.has(Number(task));
      if (all !== undefined) item.hidden = !alone.size;
      else item.setAttribute("aria-pressed", on);
      item.classList.toggle("out", all === undefined && !on && (task === undefined || alone.size > 0));
    }
  }

  function show() {
    press();
    views.forEach(draw);
  }

  async function main() {
    for (const chart of run.charts) {
      const figure = document.querySelector(`figure[data-chart="${CSS.escape(chart.id)}"]`);
      const box = legend(chart);
      if (box.childElementCount) figure.append(box);
      views.push({ chart, figure });
    }
    press();
    for (const view of views) {
      await draw(view);
      await new Promise((resolve) => setTimeout(resolve)); // the page stays alive meanwhile
    }
    dark.addEventListener("change", () => views.forEach(draw));
    document.querySelector("main").setAttribute("aria-busy", "false");
  }
  main();
})();
