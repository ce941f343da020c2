// The view of answers that could not be read: by agent and reason, over steps, with examples.

import { ask, el, number, prose, renew, svg } from "../shared/dom.js";

export function makeProblems(view) {
  const note = el("p", { class: "note", role: "status" });
  const agents = el("div");
  view.append(
    el("p", { class: "note" }, "An answer that breaks its agent's format gives way to a fallback, and pays a penalty."),
    note, agents);
  return {
    /** Draw what is known; true: the server has files left to read. */
    async refresh() {
      const found = await ask("api/problems");
      const left = found.left ? `, ${number(found.left, 6)} to go` : "";
      note.textContent = found.steps ? `${number(found.steps, 6)} steps read${left}.`
        : "No episodes yet; runs have them with train.save_trajectories.";
      renew(agents, Object.entries(found.agents).map(([name, agent]) => block(name, agent, found)));
      return found.left > 0;
    },
  };
}

function block(name, agent, found) {
  const told = agent.reasons.reduce((sum, reason) => sum + reason.count, 0);
  return el("section", {},
    el("h2", {}, name),
    el("p", {}, `${number(agent.invalid, 6)} of ${number(agent.turns, 6)} answers `
      + `(${number((100 * agent.invalid) / agent.turns)} %) broke the format.`),
    agent.reasons.length > 0 && el("ul", { class: "reasons" }, agent.reasons.map((reason) => line(reason, found))),
    agent.invalid > told && el("p", { class: "note" }, `${number(agent.invalid - told, 6)} for rarer reasons.`));
}

const line = (reason, found) => el("li", {},
  el("span", { class: "count" }, number(reason.count, 6)),
  el("span", { dir: "auto" }, prose(reason.problem)),
  bars(reason.counts, found),
  el("span", { class: "note" }, "examples: ", reason.examples.map((at, n) => [
    n > 0 && ", ", el("a", { href: `#episodes/${at.step}/${at.row}` }, `step ${at.step}`)])));

/** How often in each interval of steps. */
function bars(counts, found) {
  const most = Math.max(...counts), width = 120 / counts.length;
  return svg("svg", { class: "bars", viewBox: "0 0 120 24", role: "img", preserveAspectRatio: "none",
    "aria-label": `counts from step ${found.edges[0]} to ${found.last}: ${counts.join(", ")}` },
  counts.map((count, n) => svg("rect", {
    x: n * width, width: Math.max(0.5, width - 0.5), y: 24 - (24 * count) / most, height: (24 * count) / most,
  })),
  svg("line", { x1: 0, x2: 120, y1: 24, y2: 24 }));
}
