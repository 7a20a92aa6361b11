// The page's script: reads the page again while it is visible, draws charts, and copies commands.
// Texts of the stack become text nodes only, or are escaped where plotly would read them as markup.
"use strict";

const CHART_SECONDS = 15;
const ANSWER_MS = 70_000; // the console's own limit for one page is 60 s
const PATIENT = 4; // times that a page would have been read again
const DAY_MS = 86_400_000;
const COLOURS = ["#2f6fd6", "#2a9d5c", "#c2681a", "#8a5cc9", "#c23b6b", "#1b8a94", "#8a7a1f", "#6b7280"];
const FLEET_COLOURS = { blue: "--blue", green: "--green" };

function style(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function escaped(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

// plotly shows times as they are written: all times of the console are in UTC.
function utc(milliseconds) {
  return new Date(milliseconds).toISOString().replace("Z", "");
}

// Commands

function addCopyButtons(within) {
  if (!navigator.clipboard) return;
  for (const code of within.querySelectorAll("code.command")) {
    if (code.nextElementSibling && code.nextElementSibling.classList.contains("copy")) continue;
    const words = code.textContent;
    const button = element("button", "Copy", "copy");
    button.type = "button";
    button.setAttribute("aria-label", `Copy the command ${words}`);
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(words);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    code.after(button);
  }
}

// The page itself

function inUse(live) {
  const selection = document.getSelection();
  return live.contains(document.activeElement) || (!selection.isCollapsed && live.contains(selection.anchorNode));
}

// Says beside the page's time why that is old; once, for screen readers. A page that is read has an empty text there.
// What the page was no longer has the colours of what it is, except while an answer may still come.
function showStale(why, waiting = false) {
  const stale = document.getElementById("stale");
  if (!waiting) document.getElementById("live").classList.add("stale");
  const words = ` · ${why}`;
  if (stale && stale.textContent !== words) stale.textContent = words;
}

// The page is not loaded again then: while the console does not run, its port may be another user's.
const ENDED = "the session has ended: run observatory console and open its link";

async function readAgain(live) {
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" }, signal: AbortSignal.timeout(ANSWER_MS) });
    if (answer.status === 401) { showStale(ENDED); return; }
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById("live");
    if (!fresh || !answer.ok) throw new Error(`status ${answer.status}`);
    if (inUse(live)) { showStale("not current: a part of this page has the focus or is selected"); return; }
    const open = [...live.querySelectorAll("details[open]")].map((each) => each.id);
    live.replaceChildren(...fresh.childNodes);
    live.classList.remove("stale");
    for (const id of open) {
      const details = document.getElementById(id);
      if (details) details.open = true;
    }
    const navigation = page.querySelector(".side nav ul");
    const shown = document.querySelector(".side nav ul");
    if (navigation && shown && !shown.contains(document.activeElement)) shown.replaceWith(navigation);
    addCopyButtons(live);
  } catch (error) {
    showStale("the console does not answer");
  }
}

function keepFresh(live, seconds) {
  let busy = false;
  let waited = 0;
  setInterval(async () => {
    if (document.hidden) return;
    if (busy) { showStale("waiting for the console", ++waited < PATIENT); return; }
    busy = true;
    waited = 0;
    await readAgain(live);
    busy = false;
  }, seconds * 1000);
}

// Charts

function layout(panel, data, width) {
  const muted = style("--muted");
  const line = style("--line");
  const axis = { gridcolor: line, linecolor: line, zeroline: false, tickfont: { color: muted, size: 11 } };
  const states = Object.entries(panel.states);
  const shapes = Object.entries(panel.limits).map(([name, at]) => ({
    type: "line", xref: "paper", x0: 0, x1: 1, y0: at, y1: at,
    line: { color: style(`--${name}`), width: 1, dash: "dot" },
  }));
  for (const event of data.annotations) {
    shapes.push({
      type: "line", yref: "paper", y0: 0, y1: 1, x0: utc(event.at), x1: utc(event.at),
      line: { color: muted, width: 1, dash: "dash" },
    });
  }
  const values = panel.lines.flatMap((each) => each.y).filter((each) => each !== null);
  const nothing = values.every((each) => each === 0);
  return {
    autosize: true, margin: { l: 8, r: 8, t: 8, b: 24 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: style("--sans"), color: style("--text"), size: 11 },
    hovermode: "x unified",
    hoverlabel: { bgcolor: style("--surface"), bordercolor: line, font: { color: style("--text"), size: 11 } },
    showlegend: panel.lines.length > 1,
    legend: { orientation: "h", y: -0.16, font: { color: muted, size: 11 } },
    xaxis: {
      ...axis, type: "date", range: [data.start, data.end].map(utc), nticks: Math.max(3, Math.floor(width / 60)), tickangle: 0, showgrid: false,
      tickformat: data.end - data.start > 2 * DAY_MS ? "%b %-d" : "%H:%M", hoverformat: "%Y-%m-%d %H:%M:%S UTC",
    },
    yaxis: {
      ...axis, automargin: true, rangemode: "tozero", nticks: 5, fixedrange: true,
      ...(nothing ? { range: [0, 1] } : {}),
      ...(panel.is_time ? { type: "date" } : { ticksuffix: panel.unit ? ` ${escaped(panel.unit)}` : "", tickformat: "~g" }),
      ...(states.length ? { tickvals: states.map(([at]) => Number(at)), ticktext: states.map(([, name]) => escaped(name)) } : {}),
    },
    shapes,
  };
}

// A value between two gaps has no line.
function isAlone(each) {
  return each.y.some((y, at) => y !== null && (each.y[at - 1] ?? null) === null && (each.y[at + 1] ?? null) === null);
}

function traces(panel) {
  return panel.lines.map((each, index) => {
    const fleet = FLEET_COLOURS[each.name.split(/[ -]/)[0]];
    const colour = fleet ? style(fleet) : COLOURS[index % COLOURS.length];
    return {
      type: "scatter", mode: isAlone(each) ? "lines+markers" : "lines", name: escaped(each.name), x: each.x.map(utc), y: each.y,
      line: { color: colour, width: 1.5 }, marker: { color: colour, size: 4 },
      ...(panel.stacked ? { stackgroup: "all", fillcolor: `${colour}55` } : {}),
      hovertemplate: panel.is_time ? "%{y}" : `%{y:.4~g} ${escaped(panel.unit)}`,
    };
  });
}

function drawGraph(plot, panel, data) {
  if (!plot.classList.contains("js-plotly-plot")) plot.replaceChildren();
  Plotly.react(plot, traces(panel), layout(panel, data, plot.clientWidth), { displayModeBar: false, responsive: true, locale: "en" });
}

function drawValues(plot, panel, title) {
  const list = element("dl", undefined, "values");
  for (const each of panel.values) {
    const one = element("div", undefined, each.level);
    one.append(element("dd", each.text));
    if (each.name !== title) one.append(element("dt", each.name));
    list.append(one);
  }
  plot.replaceChildren(list);
}

function drawTable(plot, panel) {
  const table = element("table");
  const head = element("tr");
  for (const column of panel.columns) head.append(element("th", column));
  const thead = element("thead");
  thead.append(head);
  const body = element("tbody");
  for (const row of panel.rows) {
    const line = element("tr");
    for (const cell of row) line.append(element("td", cell));
    body.append(line);
  }
  table.append(thead, body);
  plot.replaceChildren(table);
}

function drawPanel(card, panel, data) {
  const plot = card.querySelector(".plot");
  if (panel.empty) {
    if (plot.classList.contains("js-plotly-plot")) Plotly.purge(plot);
    plot.replaceChildren(element("p", panel.empty, "fine"));
  } else if (panel.kind === "timeseries") {
    drawGraph(plot, panel, data);
  } else if (panel.kind === "table") {
    drawTable(plot, panel);
  } else {
    drawValues(plot, panel, card.querySelector("h3").textContent);
  }
}

function showProblem(charts, text) {
  const place = charts.querySelector(":scope > .problem");
  place.textContent = text;
  place.hidden = !text;
  for (const waiting of text ? charts.querySelectorAll(".plot > .fine") : []) waiting.textContent = "No values.";
}

// The page of a dashboard is not read again, only its values.
function showTime(milliseconds) {
  const time = document.querySelector("#live:not([data-refresh]) .read time");
  if (!time || !milliseconds) return;
  time.dateTime = `${utc(milliseconds)}Z`;
  time.textContent = utc(milliseconds).slice(0, 19).replace("T", " ");
}

// An old line has its times; an old value has none.
function withoutValues(card) {
  if (!card.querySelector(".js-plotly-plot")) card.querySelector(".plot").replaceChildren(element("p", "No values.", "fine"));
}

async function drawCharts(groups) {
  const { source, range } = groups[0].dataset;
  try {
    const answer = await fetch(`${source}?range=${encodeURIComponent(range)}`, { signal: AbortSignal.timeout(ANSWER_MS) });
    if (answer.status === 401) throw new Error(ENDED);
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const data = await answer.json();
    if (!data.problem) showTime(data.now);
    groups.forEach((charts, index) => {
      showProblem(charts, index === 0 ? data.problem : "");
      for (const card of charts.querySelectorAll(".chart")) {
        const panel = data.panels[card.id];
        if (panel) drawPanel(card, panel, data);
        else if (data.problem) withoutValues(card);
      }
    });
    document.body.dataset.drawn = "true";
  } catch (error) {
    showProblem(groups[0], `The values cannot be read: ${error.message}`);
    for (const charts of groups) charts.querySelectorAll(".chart").forEach(withoutValues);
  }
}

function keepDrawing(groups) {
  let busy = false;
  const draw = async () => {
    if (busy || document.hidden) return;
    busy = true;
    await drawCharts(groups);
    busy = false;
  };
  draw();
  setInterval(draw, CHART_SECONDS * 1000);
  document.addEventListener("visibilitychange", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}

document.addEventListener("DOMContentLoaded", () => {
  addCopyButtons(document);
  const here = document.querySelector(".side nav [aria-current]");
  if (here) here.scrollIntoView({ block: "nearest", inline: "nearest" }); // on a phone the pages are one line that scrolls
  const live = document.getElementById("live");
  if (live && live.dataset.refresh) keepFresh(live, Number(live.dataset.refresh));
  const groups = [...document.querySelectorAll(".charts")];
  if (groups.length) keepDrawing(groups);
});
