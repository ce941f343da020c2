// A line plot in SVG that is redrawn in place, so that focus and the chosen step stay.

import { el, number, prose, svg } from "../shared/dom.js";

const WIDTH = 340, HEIGHT = 170, LEFT = 44, RIGHT = 8, TOP = 8, BOTTOM = 22;
const INSIDE = `0 ${TOP} ${WIDTH} ${HEIGHT - TOP - BOTTOM}`;
const DASHES = ["", "6 2", "2 2", "8 2 2 2"];

/** A plot with a title; `draw(series, smoothing)` fills it. A series: label, colour, steps, mean, low, high. */
export function makeChart(title, meaning) {
  const legend = el("ul", { class: "legend" });
  const plot = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, tabindex: 0, role: "img" });
  const note = meaning && el("p", { class: "note" }, prose(meaning));
  const element = el("figure", {}, el("figcaption", {}, title), plot, legend, note);
  let drawn = null, at = null; // the step that is pointed at

  function point(step) {
    at = step;
    if (!drawn) return;
    drawn.mark.setAttribute("visibility", step == null ? "hidden" : "visible");
    if (step != null) drawn.mark.setAttribute("transform", `translate(${drawn.x(step)} 0)`);
    legend.replaceChildren(...drawn.series.map((one) => entry(one, step)));
  }
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    if (drawn) point(drawn.step(((event.clientX - box.left) / box.width) * WIDTH));
  });
  plot.addEventListener("pointerleave", () => point(null));
  plot.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") point(null);
    if (!move || !drawn) return;
    event.preventDefault();
    point(drawn.beside(at ?? drawn.steps.at(-1), at == null ? 0 : move));
  });
  return {
    element,
    draw(series, smoothing) {
      drawn = layout(series.map((one) => ({ ...one, smooth: smoothed(one.mean, smoothing) })), smoothing > 0);
      plot.replaceChildren(...drawn.nodes);
      const newest = series.map((one) => `${one.label} ${number(one.mean.at(-1))}`);
      plot.setAttribute("aria-label", `${title}: ${newest.join(", ")}`);
      point(at);
    },
  };
}

function layout(series, thin) {
  const steps = [...new Set(series.flatMap((one) => one.steps))].sort((a, b) => a - b);
  const values = series.flatMap((one) => one.mean);
  const [first, last] = [steps[0], steps.at(-1)];
  const [ticks, low, high] = ticksOf(Math.min(...values), Math.max(...values));
  const x = (step) => LEFT + ((step - first) / (last - first || 1)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const points = (one, heights) => heights.map((v, n) => `${x(one.steps[n]).toFixed(1)} ${y(v).toFixed(1)}`);
  const path = (one, heights) => `M${points(one, heights).join("L")}`;
  const band = (one) => `M${[...points(one, one.high), ...points(one, one.low).reverse()].join("L")}Z`;
  const mark = svg("line", { class: "mark", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  const inside = series.map((one) => {
    const lone = one.steps.length === 1;
    return svg("g", { class: `series-${one.colour % 8}` },
      one.steps.length > 1 && svg("path", { class: "band", d: band(one) }),
      thin && svg("path", { class: "raw", d: path(one, one.mean) }),
      lone ? svg("circle", { class: "dot", cx: x(first), cy: y(one.mean[0]), r: 3 })
        : svg("path", { class: "line", d: path(one, one.smooth), "stroke-dasharray": DASHES[one.colour % 4] }));
  });
  return {
    series, steps, x, mark,
    step: (place) => nearest(steps, first + ((place - LEFT) / (WIDTH - LEFT - RIGHT)) * (last - first)),
    beside: (step, move) => steps[Math.max(0, Math.min(steps.length - 1, steps.indexOf(nearest(steps, step)) + move))],
    nodes: [
      ...ticks.map((value) => svg("g", {},
        svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
        svg("text", { x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, number(value)))),
      svg("text", { x: LEFT, y: HEIGHT - 5 }, number(first, 6)),
      last > first && svg("text", { x: WIDTH - RIGHT, y: HEIGHT - 5, "text-anchor": "end" }, `step ${number(last, 6)}`),
      // A box of its own cuts off what lies outside of the axes.
      svg("svg", { y: TOP, width: WIDTH, height: HEIGHT - TOP - BOTTOM, viewBox: INSIDE }, inside),
      mark,
    ].filter(Boolean),
  };
}

/** Exponential moving average without the bias of its start. */
function smoothed(values, weight) {
  let sum = 0, known = 0;
  return values.map((value) => {
    sum = weight * sum + (1 - weight) * value;
    known = weight * known + (1 - weight);
    return sum / known;
  });
}

/** Three to six round values within a range, and the ends of the axis, a little beyond it. */
function ticksOf(low, high) {
  const room = low === high ? Math.abs(low) / 2 || 0.5 : 0.04 * (high - low);
  [low, high] = [low - room, high + room];
  const rough = (high - low) / 5, size = 10 ** Math.floor(Math.log10(rough));
  const step = size * [1, 2, 5, 10].find((factor) => factor * size >= rough);
  const begin = Math.ceil(low / step), count = Math.floor(high / step) - begin + 1;
  return [Array.from({ length: count }, (_, n) => Number(((begin + n) * step).toPrecision(12))), low, high];
}

const nearest = (steps, wanted) =>
  steps.reduce((best, step) => (Math.abs(step - wanted) < Math.abs(best - wanted) ? step : best), steps[0]);

/** A line's name and its value, at a step or the newest. */
function entry(one, step) {
  const n = step == null ? one.steps.length - 1 : one.steps.indexOf(nearest(one.steps, step));
  return el("li", { class: `series-${one.colour % 8}` },
    el("span", { class: "key", "aria-hidden": "true" }), `${one.label} `, el("b", {}, number(one.mean[n])),
    step != null && el("span", { class: "note" }, ` step ${number(one.steps[n], 6)}`));
}
