// A turn's tokens as a strip, coloured by one of their figures; all figures show on hover, tap or arrow keys.

import { el, number, quoted, signed } from "./dom.js";

const UNLIKELY = 5; // so many nats below 0 a log-prob has the full colour,
const STRONG = 2; // and so far from 0 an advantage, mostly in deviations: the same in all strips, to compare them

/** What a strip can be coloured by: its name, and what the colours mean. */
export const COLOURINGS = {
  logprob: ["log-prob", "The redder, the less likely the token was when it was drawn."],
  advantage: ["advantage", "Blue: learned to write more often; orange: less often. The stronger, the more."],
  version: ["weight version", "A colour for each version of the weights that wrote tokens."],
};

/** A turn's strip. `turn`: tokens [T], logprobs [T], advantages [T] or null, weight_versions [T], agent. */
export function tokenStrip(turn, colouring) {
  const versions = [...new Set(turn.weight_versions)].sort((a, b) => a - b);
  const told = el("output", { class: "figures", "aria-live": "polite" }, hint(turn, colouring));
  const tokens = turn.tokens.map((text, n) => {
    const token = el("span", { class: "token" }, visible(text));
    colour(token, colouring, turn, n, versions);
    return token;
  });
  let at = -1;
  const show = (n) => {
    tokens[at]?.classList.remove("at");
    at = Math.max(0, Math.min(tokens.length - 1, n));
    tokens[at].classList.add("at");
    told.replaceChildren(...figures(turn, at));
  };
  const find = (event) => {
    const n = tokens.indexOf(event.target);
    if (n >= 0) show(n);
  };
  const keys = { ArrowRight: () => at + 1, ArrowLeft: () => at - 1, Home: () => 0, End: () => tokens.length - 1 };
  const strip = el("div", {
    class: "tokens", dir: "auto", tabindex: 0, role: "group",
    "aria-label": `Tokens of the ${turn.agent}, arrow keys show their figures`,
    onpointerover: find, onclick: find,
    onkeydown: (event) => {
      if (!keys[event.key] || !tokens.length) return;
      event.preventDefault();
      show(keys[event.key]());
    },
  }, tokens);
  return el("div", {}, strip, told);
}

function hint(turn, colouring) {
  if (colouring === "advantage" && !turn.advantages) return "No advantages were stored for this turn.";
  return `${turn.tokens.length} tokens. ${COLOURINGS[colouring][1]}`;
}

/** White space, and a token that is a part of a character, would not show their colour. */
const visible = (text) => text.replaceAll("\n", "↵\n") || "·";

function colour(token, colouring, turn, n, versions) {
  const kinds = {
    logprob: () => ["unlikely", Math.min(1, -turn.logprobs[n] / UNLIKELY)],
    advantage: () => {
      const advantage = turn.advantages?.[n] ?? 0;
      return [advantage < 0 ? "less" : "more", Math.min(1, Math.abs(advantage) / STRONG)];
    },
    version: () => [`series-${versions.indexOf(turn.weight_versions[n]) % 8}`, 0.6],
  };
  const [kind, share] = kinds[colouring]();
  token.classList.add(kind);
  token.style.setProperty("--share", share);
}

function figures(turn, n) {
  const logprob = turn.logprobs[n], advantage = turn.advantages?.[n];
  const more = [
    `log-prob ${number(logprob)} (${number(100 * Math.exp(logprob))} %)`,
    advantage == null ? "no advantage stored" : `advantage ${signed(advantage)}`,
    `weights ${turn.weight_versions[n]}`,
  ];
  const text = quoted(JSON.stringify(turn.tokens[n]));
  return [`token ${n + 1} of ${turn.tokens.length} `, text, ` · ${more.join(" · ")}`];
}
