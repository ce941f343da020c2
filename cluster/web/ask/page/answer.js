// The team's answer, and beside it what it would be without a part of the input.

import { el, number, quoted, svg } from "../shared/dom.js";

const PARTS = { retrieval: "without retrieval", audio: "without voice", video: "without face" };
const HAD = { text: "words", audio: "voice", video: "face" };

export function answerCard(prediction) {
  const { labels, sure, votes, rationale, description, modalities, text, problem, degraded } = prediction;
  return el("section", { class: "answer", "aria-label": "Answer" },
    el("h2", {}, labels.length ? quoted(labels.join(", ")) : "No valid answer"),
    problem && el("p", { class: "problem" }, problem),
    sure != null && el("p", {}, `${percent(sure)} sure: so many of the sampled answers say the same.`),
    el("ul", { class: "votes" }, Object.entries(votes).map(([label, share]) => vote(label, share))),
    el("dl", {},
      fact("Reason", rationale), fact("Measured", description), fact("Words", text),
      fact("The team had", modalities.map((name) => HAD[name] ?? name).join(", "))),
    degraded && el("p", { class: "bad" }, "A part of the evidence service did not answer in time."));
}

const fact = (name, text) => text && [el("dt", {}, name), el("dd", { dir: "auto" }, text)];
const percent = (share) => `${number(100 * share, 2)} %`;

const vote = (label, share) => el("li", {},
  el("span", {}, quoted(label)),
  svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("rect", { width: 100 * share, height: 10 })),
  el("span", {}, percent(share)));

/** What the input can be answered without: something has to be left. */
export function removable({ modalities, queries }) {
  const there = { retrieval: Object.keys(queries).length > 0, audio: modalities.includes("audio"), video: modalities.includes("video") };
  return Object.keys(PARTS).filter((part) => there[part] && (part === "retrieval" || modalities.length > 1));
}

/** A table with the answer in its first row. `fill(ask)` asks for the others; `ask` takes a part, gives a prediction. */
export function comparison(prediction) {
  const rows = removable(prediction).map((part) => [part, el("tr", {}, heading(PARTS[part]), el("td", { colspan: 3 }, "…"))]);
  const element = el("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": "Comparison" }, el("table", { class: "comparison" },
    el("thead", {}, el("tr", {}, ["The team", "label", "sure", "reason"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, el("tr", {}, heading("with everything"), cells(prediction)), rows.map(([, row]) => row))));

  async function fillRow(part, row, ask) {
    try {
      row.replaceChildren(row.firstChild, ...cells(await ask(part)));
    } catch (error) {
      row.lastChild.replaceChildren(error.name === "AbortError" ? "cancelled" : el("span", { class: "bad" }, error.message));
      if (error.name === "AbortError" || error.status === 401) throw error;
    }
  }
  return { element, fill: (ask) => Promise.all(rows.map(([part, row]) => fillRow(part, row, ask))) };
}

const heading = (name) => el("th", { scope: "row" }, name);
const cells = ({ labels, sure, rationale, problem }) => [
  el("td", {}, labels.length ? quoted(labels.join(", ")) : "–"),
  el("td", {}, sure == null ? "–" : percent(sure)),
  el("td", { class: "reason" }, quoted(problem || rationale)),
];
