// Recording with the microphone, or with the camera and the microphone.

const KINDS = {
  voice: [["audio/webm;codecs=opus", ".weba"], ["audio/mp4", ".m4a"], ["audio/ogg", ".ogg"]],
  face: [["video/webm;codecs=vp8,opus", ".webm"], ["video/mp4", ".mp4"]],
};
const WORDS = {
  NotAllowedError: "The browser may not use the microphone or camera; allow it for this page.",
  NotFoundError: "No microphone or camera was found.",
  NotReadableError: "Another program has the microphone or camera.",
};

/** Browsers lend microphones to pages of this machine, and to those that come over https. */
export const canRecord = () => Boolean(navigator.mediaDevices?.getUserMedia && window.MediaRecorder);

/** Begin to record `voice` or `face` (with voice). Gives the `stream` and `stop`, which gives the file. */
export async function record(what) {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true, video: what === "face" }).catch((error) => {
    throw new Error(WORDS[error.name] ?? `The recording did not begin: ${error.message}`);
  });
  const end = () => stream.getTracks().forEach((track) => track.stop());
  const kind = KINDS[what].find(([type]) => MediaRecorder.isTypeSupported(type));
  if (!kind) {
    end();
    throw new Error("This browser records in no form that the team knows; upload a file.");
  }
  const [type, suffix] = kind, parts = [];
  const recorder = new MediaRecorder(stream, { mimeType: type });
  const finished = new Promise((resolve) => {
    recorder.ondataavailable = (event) => parts.push(event.data);
    recorder.onstop = () => resolve(new File(parts, `recording${suffix}`, { type: type.split(";")[0] }));
  });
  recorder.start();
  return {
    stream,
    async stop() {
      if (recorder.state !== "inactive") recorder.stop(); // it is when the microphone was taken away
      end();
      return finished;
    },
  };
}
