// The page of a run: asks every two seconds how it is, and lets the view that is open draw what is new.

import { ask, duration, number } from "../shared/dom.js";
import { makeCurves } from "./curves.js";
import { makeEpisodes } from "./episodes.js";
import { makeProblems } from "./problems.js";

const EVERY_MS = 2000, HIDDEN_MS = 15000;
const by = (id) => document.getElementById(id);
const views = {
  curves: makeCurves(by("curves-view")),
  episodes: makeEpisodes(by("episodes-view")),
  problems: makeProblems(by("problems-view")),
};
let state = null, drawn = {}; // by view, the revision that it has drawn

function place() {
  const [name, step, row] = location.hash.slice(1).split("/");
  return { name: name in views ? name : "curves", at: row ? { step: Number(step), row: Number(row) } : null };
}

async function route() {
  const { name, at } = place();
  for (const key of Object.keys(views)) by(`${key}-view`).hidden = key !== name;
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.getAttribute("href") === `#${name}`;
    here ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  }
  if (at) await views.episodes.show(at);
  await redraw();
}

/** Let the open view draw what it has not drawn yet. */
async function redraw() {
  const { name } = place(), revision = JSON.stringify(state?.revision);
  if (!state || drawn[name] === revision) return;
  const unfinished = await views[name].refresh(state);
  drawn[name] = unfinished ? null : revision;
}

async function tick() {
  try {
    state = await ask("api/state");
    head(state);
    await redraw();
    trouble("");
  } catch (error) {
    trouble(`${error.message}. Is affect-rl watch still running?`);
  }
  setTimeout(tick, document.hidden ? HIDDEN_MS : EVERY_MS);
}

function trouble(text) {
  if (by("trouble").textContent !== text) by("trouble").textContent = text;
  by("trouble").hidden = !text;
}

function head({ name, algorithm, stage, step, steps, step_s, written_s, times, episodes, evaluation }) {
  document.title = `${name}: ${stage}, step ${step}`;
  by("name").textContent = name;
  const running = !["trained", "evaluated"].includes(stage);
  const status = [stage, steps ? `step ${number(step, 6)} of ${number(steps, 6)}` : `step ${number(step, 6)}`,
    algorithm, episodes && `${number(episodes, 9)} episodes`].filter(Boolean).join(" · ");
  by("status").textContent = status;
  by("progress").hidden = !steps;
  by("progress").value = steps ? Math.min(1, step / steps) : 0;
  by("facts").textContent = [
    written_s != null && `last step ${duration(written_s)} ago`,
    step_s != null && `a step takes ${duration(step_s)}`,
    running && step_s != null && steps > step && `about ${duration((steps - step) * step_s)} left`,
    Object.entries(times).map(([part, seconds]) => `${part} ${duration(seconds)}`).join(", "),
  ].filter(Boolean).join(" · ");
  by("results").hidden = !evaluation;
  if (by("evaluation").textContent !== evaluation) by("evaluation").textContent = evaluation ?? "";
}

const go = () => route().catch((error) => trouble(error.message));
window.addEventListener("hashchange", go);
await go();
await tick();
