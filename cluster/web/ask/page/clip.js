// The clip of an input: a file or a recording, which can be played and taken away again.

import { el } from "../shared/dom.js";
import { canRecord, record } from "./recorder.js";

const NAMES = { voice: "Record voice", face: "Record face and voice" };

/** Draw the choice of a clip; `trouble` is told what goes wrong. `file()` is what was chosen, or null. */
export function makeClip(place, trouble) {
  let file = null, address = null, running = null;
  const choose = el("input", { type: "file", id: "file", accept: "audio/*,video/*", onchange: () => put(choose.files[0] ?? null) });
  const buttons = Object.fromEntries(Object.entries(NAMES).map(([what, name]) => [what, el("button", { type: "button", onclick: () => toggle(what) }, name)]));
  const shown = el("div", { class: "clip" });
  place.append(
    el("label", { for: "file" }, "Or a clip, sound or video"), choose,
    canRecord() ? el("div", { class: "controls" }, Object.values(buttons))
      : el("p", { class: "note" }, "To record here, open this page over https or on the machine that serves it."),
    shown);

  function put(chosen) {
    if (address) URL.revokeObjectURL(address);
    file = chosen;
    address = file && URL.createObjectURL(file);
    shown.replaceChildren(...(file ? [player(file, address), el("p", {}, el("bdi", {}, file.name), " ", remove())] : []));
  }

  const remove = () => el("button", { type: "button", onclick: () => { choose.value = ""; put(null); choose.focus(); } }, "Remove");

  async function toggle(what) {
    trouble("");
    try {
      await (running ? finish() : begin(what));
    } catch (error) {
      trouble(error.message);
    }
  }

  async function begin(what) {
    for (const button of Object.values(buttons)) button.disabled = true;
    try {
      running = { what, since: Date.now(), ...(await record(what)) };
    } finally {
      for (const button of Object.values(buttons)) button.disabled = false;
    }
    choose.value = "";
    put(null);
    if (what === "face") shown.replaceChildren(mirror(running.stream));
    choose.disabled = true;
    for (const [name, button] of Object.entries(buttons)) button.disabled = name !== what;
    running.clock = setInterval(tick, 500);
    tick();
  }

  const tick = () => (buttons[running.what].textContent = `Stop (${Math.round((Date.now() - running.since) / 1000)} s)`);

  async function finish() {
    const { stop, clock } = running;
    clearInterval(clock);
    running = null;
    put(await stop());
    choose.disabled = false;
    for (const [name, button] of Object.entries(buttons)) Object.assign(button, { disabled: false, textContent: NAMES[name] });
  }

  return { file: () => file, recording: () => running !== null };
}

function player(file, address) {
  const note = el("p", { class: "note", hidden: true }, "This browser cannot play the file; the team may know it.");
  const fail = () => { note.hidden = false; media.hidden = true; };
  const media = el(file.type.startsWith("video/") ? "video" : "audio", {
    controls: true, src: address, playsinline: true, "aria-label": "The clip", onerror: fail,
  });
  return el("div", {}, media, note);
}

/** What the camera sees now. */
function mirror(stream) {
  const video = el("video", { autoplay: true, playsinline: true, "aria-label": "The camera's picture" });
  video.muted = true;
  video.srcObject = stream;
  return video;
}
