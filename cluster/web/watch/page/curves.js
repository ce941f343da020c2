// The view of metrics: a plot for each chosen family, with a line for each agent or part.

import { ask, el, prose } from "../shared/dom.js";
import { makeChart } from "./chart.js";

const USUAL = [
  "episode/score", "episode/score_without_<agent>", "dev/<part>", "test/<part>", "<agent>/reward", "kl/<agent>",
  "<agent>/entropy", "<agent>/explained_variance", "<agent>/invalid", "loss", "<agent>/loss", "<agent>/accuracy",
];
const STAGES = { train: "training", sft: "warm start" };

export function makeCurves(view) {
  let state = null, stage = null, smoothing = 0, charts = new Map(), data = {};
  const chosen = new Set(JSON.parse(localStorage.getItem("metrics") ?? "null") ?? USUAL);
  const stages = el("select", { onchange: () => { stage = stages.value; build(); } });
  const slider = el("input", {
    type: "range", min: 0, max: 0.95, step: 0.05, value: 0,
    oninput: () => { smoothing = Number(slider.value); draw(); },
  });
  const list = el("div", { class: "choice" }), count = el("summary");
  const plots = el("div", { class: "plots" });
  const nothing = el("p", { class: "muted" }, "No numbers yet: the first come with the first step.");
  view.append(
    el("div", { class: "controls" },
      el("label", {}, "Stage", stages), el("label", {}, "Smoothing", slider)),
    el("details", { class: "metrics" }, count, list), nothing, plots);

  const families = () => state.metrics[stage];
  const shown = () => families().filter((one) => chosen.has(one.family));

  /** Choices and empty plots, anew where the stage or the metrics have changed. */
  function build() {
    stages.replaceChildren(...Object.keys(STAGES).filter((key) => state.metrics[key].length)
      .map((key) => el("option", { value: key, selected: key === stage }, STAGES[key])));
    list.replaceChildren(...families().map(choice));
    charts = new Map(shown().map((one) => [one.family, makeChart(one.family, meaningOf(one))]));
    count.textContent = `Choose metrics: ${charts.size} of ${families().length} shown`;
    plots.replaceChildren(...[...charts.values()].map((chart) => chart.element));
    return load();
  }

  function choice(one) {
    const box = el("input", {
      type: "checkbox", checked: chosen.has(one.family),
      onchange: () => {
        box.checked ? chosen.add(one.family) : chosen.delete(one.family);
        localStorage.setItem("metrics", JSON.stringify([...chosen]));
        build().then(() => [...list.querySelectorAll("input")][families().indexOf(one)]?.focus());
      },
    });
    const note = el("span", { class: "note" }, " ", prose(meaningOf(one)));
    return el("label", {}, box, el("span", {}, el("b", {}, one.family), note));
  }

  async function load() {
    const names = shown().flatMap((one) => one.series.map((series) => series.name));
    data = names.length ? await ask("api/curves", { name: names, stage }) : {};
    draw();
  }

  function draw() {
    for (const one of shown()) {
      const known = one.series.filter((series) => data[series.name]).map((series) => (
        { ...data[series.name], label: series.of || series.name, colour: colour(series, one) }));
      if (known.length) charts.get(one.family)?.draw(known, smoothing);
    }
  }

  /** An agent has its colour in all plots. */
  function colour(series, one) {
    if (!one.family.includes("<agent>")) return one.series.indexOf(series);
    const theirs = families().filter((other) => other.family.includes("<agent>"));
    const agents = new Set(theirs.flatMap((other) => other.series.map((line) => line.of)));
    return [...agents].sort().indexOf(series.of);
  }

  return {
    async refresh(fresh) {
      const before = JSON.stringify(state?.metrics);
      state = fresh;
      nothing.hidden = state.metrics.train.length + state.metrics.sft.length > 0;
      if (!nothing.hidden) return;
      if (!stage || !state.metrics[stage].length) stage = state.metrics.train.length ? "train" : "sft";
      await (JSON.stringify(state.metrics) === before ? load() : build());
    },
  };
}

/** What a family means: one sentence, or one for each of its lines. */
function meaningOf(one) {
  const told = new Map();
  for (const series of one.series) {
    if (series.meaning) told.set(series.meaning, [...(told.get(series.meaning) ?? []), series.of]);
  }
  if (told.size < 2) return [...told.keys()].join("");
  return [...told].map(([meaning, of]) => `${of.join(", ")}: ${meaning}`).join(". ");
}
