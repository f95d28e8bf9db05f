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
  const MANY = 10; // tasks, above which each has a line of its own in a figure, until fewer are asked for
  let asked = ""; // what names of tasks should hold
  let optima = true; // whether σ* is shown
  const views = []; // charts and their figures

  const theme = () => {
    const style = getComputedStyle(document.documentElement);
    return (name) => style.getPropertyValue(`--${name}`).trim();
  };
  const colour = (of, task) => (task === null ? of("ink") : of(`task-${run.tasks[task].style.colour}`));
  const dash = (task) => (task === null ? "" : run.tasks[task].style.dash);
  const visible = (task) => task === null || ((!alone.size || alone.has(task)) && run.tasks[task].name.toLowerCase().includes(asked));
  const shown = (trace) => visible(trace.task) && (optima || trace.look !== "dotted");
  const many = (chart) => !chart.small && new Set(chart.traces.filter(shown).map((trace) => trace.task)).size > MANY;

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
      paper_bgcolor: of("card"), plot_bgcolor: of("card"), margin: { l: 8, r: 12, t: fingers.matches ? 8 : 34, b: 8 }, // where there are icons, they are above the data
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
    const each = many(chart);
    figure.querySelector(".plot").hidden = each;
    if (each && !figure.querySelector(".multiples")) figure.insertBefore(multiples(chart), figure.querySelector(".plot"));
    for (const one of figure.querySelectorAll(".multiples")) {
      one.hidden = !each;
      for (const item of one.children) item.hidden = !visible(Number(item.dataset.task));
    }
    if (each) return null;
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

  const select = (task) => {
    if (!alone.delete(task)) alone.add(task);
    show();
  };

  // a small line for each task, on an axis of its own; gaps on one axis, whose middle is 0 %, and shares on one from 0 %
  function multiples(chart) {
    const box = document.createElement("div");
    box.className = "multiples";
    const lines = chart.traces.filter((trace) => trace.look !== "dotted");
    const logarithmic = chart.axis === "log" || chart.axis === "gap";
    const height = (value) => {
      if (value === null || (logarithmic && value <= 0)) return null;
      return logarithmic ? Math.log(value) : value;
    };
    const widest = Math.max(0.005, ...lines.flatMap((trace) => trace.y.map(height)).filter((y) => y !== null).map(Math.abs));
    for (const task of new Set(lines.map((trace) => trace.task))) {
      const own = lines.filter((trace) => trace.task === task), { name, style } = run.tasks[task];
      const ys = own.flatMap((trace) => trace.y.map(height)).filter((y) => y !== null), xs = own.flatMap((trace) => trace.x);
      const [low, high] = { gap: [-widest, widest], share: [0, widest] }[chart.axis] ?? [Math.min(...ys), Math.max(...ys)];
      const [first, last] = [Math.min(...xs), Math.max(...xs)];
      const place = (x, y) => `${((100 * (x - first)) / (last - first || 1)).toFixed(2)} ${(36 - (32 * (y - low)) / (high - low || 1)).toFixed(2)}`;
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      svg.setAttribute("viewBox", "0 0 100 40");
      svg.setAttribute("preserveAspectRatio", "none");
      svg.setAttribute("class", `c${style.colour}`);
      svg.setAttribute("aria-hidden", "true");
      for (const trace of own) {
        const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
        let pen = "M", d = "";
        trace.y.map(height).forEach((y, index) => {
          if (y !== null) d += `${pen}${place(trace.x[index], y)}`;
          pen = y === null ? "M" : "L";
        });
        path.setAttribute("d", d);
        if (trace.look === "dashed") path.setAttribute("stroke-dasharray", "4 3");
        svg.append(path);
      }
      const ended = own[0].y.filter((value) => value !== null).at(-1);
      const text = ended === undefined ? "" : chart.axis === "gap" ? percent(ended, 1) : chart.axis === "share" ? `${ended.toFixed(1)} %` : String(Number(ended.toPrecision(4)));
      const item = document.createElement("button"), label = document.createElement("span"), value = document.createElement("small");
      item.type = "button";
      item.dataset.task = task;
      label.textContent = name;
      value.textContent = text;
      item.append(label, value, svg);
      item.addEventListener("click", () => select(task));
      box.append(item);
    }
    return box;
  }

  function search() {
    const field = document.createElement("input");
    field.type = "search";
    field.placeholder = `Search ${run.tasks.length} tasks`;
    field.setAttribute("aria-label", "Show tasks whose names hold");
    field.addEventListener("input", () => {
      asked = field.value.trim().toLowerCase();
      show();
    });
    return field;
  }

  // one for the page: which tasks, and whether σ*, are shown
  function tasksLegend() {
    const box = document.getElementById("legend");
    if (run.tasks.length > MANY) box.append(search());
    const all = entry("", "all tasks", null, () => {
      alone.clear();
      show();
    });
    all.dataset.all = "";
    if (run.tasks.length > 1) box.append(all);
    run.tasks.forEach(({ name, style }, task) => {
      const item = entry(`c${style.colour}`, name, style.dash, () => select(task));
      item.dataset.task = task;
      box.append(item);
    });
    if (run.charts.some((chart) => chart.traces.some((trace) => trace.look === "dotted"))) {
      const item = entry("", "σ*", "1,3", () => {
        optima = !optima;
        show();
      });
      item.dataset.optima = "";
      box.append(item);
    }
  }

  // of a chart: how its stages look, where there are several
  function legend(chart) {
    const box = document.createElement("div");
    box.className = "legend";
    const looks = new Set(chart.traces.map((trace) => trace.look));
    const stages = { dashed: ["train", "4,3"], line: ["val", ""], points: ["test", "point"] };
    const staged = (chart.id.includes("loss") && !["loss", "loss_share"].includes(chart.id)) || chart.small;
    if (staged && looks.size > 1) for (const look of looks) box.append(entry("", ...stages[look]));
    return box;
  }

  function press() {
    for (const row of document.querySelectorAll("#tasks tbody tr")) row.hidden = !visible(Number(row.dataset.task));
    for (const item of document.querySelectorAll(".legend button")) {
      const { task, all } = item.dataset;
      if (task !== undefined) item.hidden = !run.tasks[task].name.toLowerCase().includes(asked);
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
    tasksLegend();
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
