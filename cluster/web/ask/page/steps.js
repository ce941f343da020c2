// The team at work: a card for each step, with what it wrote.

import { el, number, quoted } from "../shared/dom.js";

const NAMES = { perceive: "Retriever, by voice and face", planner: "Planner", search: "Retriever, by queries", filter: "Filter", generator: "Generator" };

export const stepName = (step) => NAMES[step] ?? step;

/** Cards that are added event by event; `element` holds them. */
export function makeSteps() {
  const element = el("ol", { class: "steps" });
  let pieces = []; // evidence that was found, each with the mark in front of it

  const draw = {
    queries: (queries) => el("dl", {}, Object.entries(queries).map(([group, text]) => [el("dt", {}, group), el("dd", {}, el("q", { dir: "auto" }, text))])),
    candidates(found) {
      pieces = found.map((item) => ({ ...item, mark: el("span", { class: "mark" }) }));
      return pieces.length ? groups(pieces).map(([group, items]) => [el("h4", {}, group), el("ul", { class: "evidence" }, items.map(piece))]) : el("p", {}, "Found nothing.");
    },
    kept(kept) {
      const ids = new Set(kept.map((item) => item.id));
      for (const { id, mark } of pieces) {
        mark.textContent = ids.has(id) ? "✓ kept " : "dropped ";
        mark.parentElement.className = ids.has(id) ? "kept" : "dropped";
      }
      return el("p", {}, `Kept ${kept.length} of ${pieces.length}`, kept.length > 0 && ": ", kept.map((item, n) => [n > 0 && "; ", quoted(item.text)]), ".");
    },
    support: (near) => el("p", {}, near.length ? ["Sounds or looks like ", near.map((one, n) => [n > 0 && ", ", quoted(one.labels.join(", ")), el("span", { class: "note" }, ` ${one.id}`)]), "."] : "Nothing to hear or see."),
    output: ({ labels, rationale, problem }) => [
      el("p", {}, labels.length ? el("b", {}, quoted(labels.join(", "))) : "No valid answer", rationale && [": ", quoted(rationale)]),
      problem && el("p", { class: "problem" }, problem),
    ],
  };
  const other = (slot, value) => el("p", {}, `${slot}: `, quoted([value].flat().map((one) => (typeof one === "string" ? one : JSON.stringify(one))).join(" ")));

  return {
    element,
    add({ step, writes }) {
      element.append(el("li", {}, el("h3", {}, stepName(step)), Object.entries(writes).map(([slot, value]) => (draw[slot] ? draw[slot](value) : other(slot, value)))));
    },
  };
}

function groups(items) {
  const found = new Map();
  for (const item of items) found.set(item.group, [...(found.get(item.group) ?? []), item]);
  return [...found];
}

const piece = ({ mark, text, id, score }) => el("li", {}, mark, quoted(text), el("span", { class: "note" }, ` ${id}, similarity ${number(score, 2)} `), speaker(text));

/** A button that says a text aloud. */
function speaker(text) {
  if (!("speechSynthesis" in window)) return null;
  const say = () => {
    speechSynthesis.cancel(); // whatever is being said
    speechSynthesis.speak(new SpeechSynthesisUtterance(text));
  };
  return el("button", { type: "button", class: "say", "aria-label": `Say aloud: ${text}`, onclick: say }, "▶");
}
