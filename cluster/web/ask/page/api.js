// Questions to the team, with the token; what goes wrong is an error in words.

const KEY = "token";
const WORDS = {
  413: "The input is too large", 422: "The team cannot take this input",
  503: "The team has no time", 504: "The team was too slow",
};

/** Keep the token for this tab. */
export const keepToken = (token) => sessionStorage.setItem(KEY, token.trim());
export const hasToken = () => Boolean(sessionStorage.getItem(KEY));

/** Take the token out of the address, where the part behind # stays in the browser. */
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given == null) return;
  keepToken(given);
  history.replaceState(null, "", location.pathname + location.search);
}

/** What may be asked for. */
export const limits = async () => (await send("v1/limits")).json();

/** The team's prediction for an input (`text`, `file` or null), without a part of it. */
export async function predict(input, part, signal) {
  return (await (await post(input.file ? "v1/clip" : "v1/predict", input, [part], signal)).json()).prediction;
}

/** What the team does with an input, event by event; the last one is the answer. */
export async function* watch(input, signal) {
  const response = await post(input.file ? "v1/clip/stream" : "v1/stream", input, [], signal);
  for await (const line of lines(response.body)) {
    const event = read(line);
    if (event.event === "error") throw new Error(`The team gave up: ${event.detail}`);
    yield event;
    if (event.event === "answer") return;
  }
  throw new Error("The team's work broke off before there was an answer; ask again.");
}

function post(path, { text, file }, without, signal) {
  if (!file) {
    const body = JSON.stringify({ text, without });
    return send(path, { method: "POST", body, signal, headers: { "Content-Type": "application/json" } });
  }
  const body = new FormData();
  body.append("text", text);
  for (const part of without) body.append("without", part);
  body.append("file", file);
  return send(path, { method: "POST", body, signal });
}

async function send(path, options = {}) {
  const token = sessionStorage.getItem(KEY) ?? "";
  if (!/^[!-~]*$/.test(token)) throw refused(401);
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...options.headers, Authorization: `Bearer ${token}` } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Is affect-rl serve still running?");
  }
  if (response.ok) return response;
  const detail = await response.json().then((found) => found.detail, () => null);
  throw refused(response.status, typeof detail === "string" ? detail : response.statusText);
}

function refused(status, detail) {
  const words = status === 401 ? "The token was not accepted; use the one that affect-rl serve printed."
    : `${WORDS[status] ?? `The server answered ${status}`}: ${detail}.`;
  return Object.assign(new Error(words), { status });
}

function read(line) {
  try {
    return JSON.parse(line);
  } catch {
    throw new Error("The server sent a line that cannot be read; ask again.");
  }
}

/** The lines of a stream, as they come. */
async function* lines(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value = "", done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new Error("The connection broke off; ask again.");
    });
    const found = (rest + value).split("\n");
    rest = found.pop();
    yield* found;
    if (done) break;
  }
  if (rest) yield rest;
}
