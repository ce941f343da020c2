// The page of a served team: the token first, then an input, the team at work, the answer, the comparison.

import { el } from "../shared/dom.js";
import { answerCard, comparison, removable } from "./answer.js";
import { hasToken, keepToken, limits, predict, takeToken, watch } from "./api.js";
import { makeClip } from "./clip.js";
import { makeSteps, stepName } from "./steps.js";

const by = (id) => document.getElementById(id);
const clip = makeClip(by("clip"), trouble);
let allowed = null; // what the server says may be asked for
let asking = null; // stops what is asked now

function trouble(text) {
  by("trouble").textContent = text;
  by("trouble").hidden = !text;
}

/** Ask for the token, or show the room; nothing of the team is shown before the token was accepted. */
async function enter() {
  takeToken();
  const brought = hasToken();
  try {
    allowed = await limits();
    trouble("");
    by("gate").hidden = true;
    by("room").hidden = false;
  } catch (error) {
    askToken(error.status !== 401 || brought ? error.message : "");
  }
}

function askToken(why) {
  by("room").hidden = true;
  by("gate").hidden = false;
  trouble(why);
  by("token").focus();
}

/** Let `work` ask the team until it is done, fails or is cancelled. */
async function ask(work) {
  asking = new AbortController();
  busy(true);
  trouble("");
  try {
    await work(asking.signal);
  } catch (error) {
    by("status").textContent = error.name === "AbortError" ? "Cancelled." : "";
    if (error.status === 401) askToken(error.message);
    else if (error.name !== "AbortError") trouble(error.message);
  } finally {
    asking = null;
    busy(false);
  }
}

function busy(now) {
  for (const button of [by("ask"), ...document.querySelectorAll(".compare")]) button.disabled = now;
  by("cancel").hidden = !now;
}

/** The input, or what is wrong with it. */
function readInput() {
  const input = { text: by("words").value, file: clip.file() }, most = allowed.max_upload_mib;
  if (clip.recording()) return [null, "The recording still runs; stop it first."];
  if (!input.file && !input.text.trim()) return [null, "There is nothing to ask about: write words, choose a file, or record."];
  if (input.file?.size > most * 2 ** 20) return [null, `The clip has ${(input.file.size / 2 ** 20).toFixed(1)} MiB, and the server takes ${most} (serve.max_upload_mib); choose a shorter one.`];
  return [input, ""];
}

async function play(input, signal) {
  const told = by("told"), status = by("status");
  status.textContent = "The team has begun.";
  by("work").focus(); // the button that had it rests
  reveal();
  let steps = makeSteps();
  told.replaceChildren(steps.element);
  for await (const event of watch(input, signal)) {
    if (event.event === "step") {
      steps.add(event);
      status.textContent = `${stepName(event.step)}: done.`;
    } else if (event.event === "again") {
      steps = makeSteps();
      told.replaceChildren(el("p", { class: "note" }, "An engine was lost; the team has begun again."), steps.element);
    } else if (event.event === "answer") {
      status.textContent = "The answer is there.";
      told.prepend(answerCard(event.prediction), ...compared(event.prediction, input));
      reveal();
    }
  }
}

/** Where the page has one column, what the team does stands below the input. */
function reveal() {
  if (matchMedia("(max-width: 60rem)").matches) by("work").scrollIntoView();
}

/** A button that puts the comparison in its place. */
function compared(prediction, input) {
  if (!removable(prediction).length) return [];
  const button = el("button", { type: "button", class: "compare", onclick: () => ask(async (signal) => {
    const table = comparison(prediction);
    place.replaceChildren(el("h3", {}, "Compared"), table.element);
    table.element.focus();
    by("status").textContent = "The team is asked without parts of the input.";
    await table.fill((part) => predict(input, part, signal));
    by("status").textContent = "The comparison is there.";
  }) }, "Compare: what if a part were missing?");
  const place = el("div", {}, button);
  return [place];
}

by("gate").addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken(by("token").value);
  by("token").value = "";
  enter();
});
by("question").addEventListener("submit", (event) => {
  event.preventDefault();
  const [input, problem] = readInput();
  if (problem) trouble(problem);
  else if (!asking) ask((signal) => play(input, signal));
});
by("cancel").addEventListener("click", () => asking?.abort());
window.addEventListener("hashchange", enter);
await enter();
