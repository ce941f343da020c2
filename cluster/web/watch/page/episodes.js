// The view of episodes: those of a step in a list, and one of them in full.

import { ask, el, number, prose, quoted, renew, signed } from "../shared/dom.js";
import { COLOURINGS, tokenStrip } from "../shared/tokens.js";

const PAGE = 50;

export function makeEpisodes(view) {
  let found = null, step = null, open = null, colouring = "logprob", wanted = 0;
  const follow = el("input", { type: "checkbox", checked: true, onchange: () => follow.checked && go(null) });
  const field = el("input", {
    type: "number", min: 1, "aria-label": "Training step", onchange: () => go(Number(field.value)),
  });
  const back = el("button", { type: "button", "aria-label": "Step before", onclick: () => go(found.previous) }, "‹");
  const on = el("button", { type: "button", "aria-label": "Step after", onclick: () => go(found.next) }, "›");
  const show = el("select", { onchange: () => load() },
    el("option", { value: "all" }, "all"), el("option", { value: "wrong" }, "wrong answers"),
    el("option", { value: "invalid" }, "broken format"));
  const count = el("p", { class: "note", role: "status" });
  const list = el("ul", { class: "episodes" });
  const more = el("button", { type: "button", onclick: () => load(found.episodes.length) }, "More");
  const detail = el("article", { class: "detail", "aria-live": "off", tabindex: -1 });
  view.append(
    el("div", { class: "controls" },
      el("span", { class: "steps" }, el("label", {}, "Step", back, field, on)),
      el("label", {}, follow, "newest"), el("label", {}, "Show", show)),
    el("div", { class: "split" }, el("div", {}, count, list, more), detail));

  function go(to) {
    step = to;
    follow.checked = to == null;
    return load();
  }

  /** The list, from the start or what comes after the first `offset`. */
  async function load(offset = 0) {
    const asked = ++wanted;
    let answer;
    try {
      answer = await ask("api/episodes", { step, show: show.value, offset, limit: PAGE });
    } catch (error) {
      count.textContent = error.message;
      return;
    }
    if (asked !== wanted) return; // somebody has chosen another step meanwhile
    found = offset ? { ...answer, episodes: [...found.episodes, ...answer.episodes] } : answer;
    if (document.activeElement !== field) field.value = found.step ?? "";
    back.disabled = found.previous == null;
    on.disabled = found.next == null;
    count.textContent = found.step == null ? "No episodes yet; runs have them with train.save_trajectories."
      : `${number(found.total, 6)} episodes of step ${found.step}`;
    more.hidden = found.episodes.length >= found.total;
    renew(list, found.episodes.map(line));
  }

  const isOpen = (episode) => open && open.step === found.step && open.row === episode.row;
  const line = (episode) => el("li", {},
    el("a", { href: `#episodes/${found.step}/${episode.row}`, "aria-current": isOpen(episode) ? "true" : null },
      el("span", { class: "sample" }, episode.sample),
      el("span", { class: episode.outcome.replace(" ", "-") }, episode.outcome),
      el("span", { class: "labels" }, words(episode.labels), " → ", words(episode.predicted)),
      el("span", { class: "note" },
        episode.turns.map(({ agent, reward }) => `${agent} ${signed(reward, 2)}`).join(" · ")),
      episode.turns.filter((turn) => turn.problem).map(({ agent, problem }) =>
        el("span", { class: "problem note" }, `${agent}: `, prose(problem)))));

  async function openEpisode(at) {
    try {
      open = await ask(`api/episodes/${at.step}/${at.row}`);
    } catch (error) {
      detail.replaceChildren(el("p", { class: "bad" }, error.message));
      return;
    }
    draw();
    if (found) renew(list, found.episodes.map(line));
  }

  function draw() {
    const blocks = open.turns.map((turn) => turnBlock(turn, colouring));
    if (open.searches.length) blocks.splice(evidencePlace(open.turns), 0, evidence(open.searches));
    detail.replaceChildren(
      el("h2", {}, open.sample),
      el("p", {}, "True: ", words(open.labels), ". ",
        el("span", { class: open.outcome.replace(" ", "-") }, open.outcome), `, step ${open.step}`),
      answers(open.answers), switches(), ...blocks,
      el("p", { class: "note" }, "Perceptual neighbours: ", open.neighbours.length ? words(open.neighbours) : "none",
        open.degraded && ". A retrieval shard did not answer."));
  }

  const switches = () => el("fieldset", { class: "controls colouring" }, el("legend", {}, "Colour tokens by"),
    Object.entries(COLOURINGS).map(([key, [name]]) => el("label", {}, el("input", {
      type: "radio", name: "colouring", value: key, checked: key === colouring,
      onchange: () => {
        colouring = key;
        draw();
        detail.querySelector("input:checked").focus({ preventScroll: true });
      },
    }), name)));

  return {
    async refresh() {
      if (follow.checked) step = null;
      if (follow.checked || !found) await load();
      if (!open && found?.episodes.length) await openEpisode({ step: found.step, row: found.episodes[0].row });
    },
    /** Show an episode that an address names. */
    async show(at) {
      if (at.step !== found?.step) await go(at.step);
      await openEpisode(at);
      if (matchMedia("(max-width: 60rem)").matches) detail.scrollIntoView();
    },
  };
}

const words = (labels) =>
  labels.length ? labels.map((label, n) => [n > 0 && ", ", quoted(label)]) : "no valid answer";

/** Evidence stands before who chooses from it, or who reads what retrieval order chose. */
function evidencePlace(turns) {
  const filter = turns.findIndex((turn) => turn.agent === "filter");
  return filter < 0 ? Math.max(0, turns.length - 1) : filter;
}

const answers = (found) => el("table", {},
  el("thead", {}, el("tr", {}, ["Answer", "labels", "score"].map((name, n) =>
    el("th", { scope: "col", class: n === 1 && "words" }, name)))),
  el("tbody", {}, found.map(({ to, labels, score }) => el("tr", {},
    el("th", { scope: "row" }, to), el("td", { class: "words" }, words(labels)), el("td", {}, number(score))))));

function evidence(searches) {
  const line = (found) => el("tr", { class: found.kept ? "kept" : "dropped" },
    el("td", {}, found.kept ? "✓ kept" : "dropped"),
    el("td", { class: "words" }, quoted(found.text), el("span", { class: "note" }, ` ${found.id}`)),
    el("td", {}, number(found.score)));
  return el("section", { class: "turn" }, el("h3", {}, "Evidence"), searches.map((search) => [
    el("p", { class: "note" }, `${search.group}, query: `, el("q", { dir: "auto" }, search.query)),
    el("div", { class: "scroll" }, el("table", { class: "evidence" }, el("tbody", {}, search.candidates.map(line)))),
  ]));
}

function turnBlock(turn, colouring) {
  const facts = [
    `reward ${signed(turn.reward)}`, turn.temperature === 0 && "greedy", !turn.trained && "does not learn",
  ].filter(Boolean);
  return el("section", { class: "turn" },
    el("h3", {}, turn.number ? `${turn.agent}, turn ${turn.number + 1}` : turn.agent,
      el("span", { class: "note" }, ` ${facts.join(" · ")}`)),
    turn.problem && el("p", { class: "problem" }, "Broken format: ", prose(turn.problem)),
    el("details", {}, el("summary", {}, `Prompt, ${turn.prompt_tokens} tokens`),
      el("pre", { dir: "auto" }, turn.prompt ?? "The run has no policy with a tokenizer yet.")),
    tokenStrip(turn, colouring));
}
