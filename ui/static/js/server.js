// Talking to the server: addresses under whatever prefix a proxy adds, JSON calls, live events.

const base = (() => {
  const root = window.gradio_config?.root; // its host may be the inner one of a proxy, its path is right
  const path = root ? new URL(root, location.href).pathname : new URL(document.baseURI).pathname;
  return new URL(path.replace(/\/?$/, "/"), location.origin);
})();

export const url = (path) => new URL(path, base).href;

export class Refusal extends Error {
  constructor(status, answer) {
    super(answer?.detail ?? `The server answered ${status}.`);
    this.status = status;
    this.problems = answer?.problems ?? [];
  }
}

// The answer's JSON; a Refusal carries the server's sentence.
export async function call(path, { method = "GET", body, type } = {}) {
  const headers = type ? { "content-type": type } : {};
  const answer = await fetch(url(path), { method, body, headers });
  const json = await answer.json().catch(() => null);
  if (!answer.ok) throw new Refusal(answer.status, json);
  return json;
}

export const post = (path, options = {}) => call(path, { method: "POST", ...options });

// Calls `hear({type, ...})` for every event, and with {type: "online", online} when the line opens or breaks.
// Where a proxy lets no WebSocket through, server-sent events do the same (they count against the browser's six
// connections to a host, so they come second).
export function listen(hear) {
  let wait = 0;
  let failures = 0;
  let line = null;
  let timer = 0;
  const opened = () => {
    wait = failures = 0;
    hear({ type: "online", online: true });
  };
  const heard = (event) => hear(JSON.parse(event.data));
  const closed = () => {
    line = null;
    failures += 1;
    hear({ type: "online", online: false });
    clearTimeout(timer);
    timer = setTimeout(open, wait + Math.random() * 300);
    wait = Math.min(8000, Math.max(500, wait * 2));
    if (failures === 3)
      // perhaps signed out meanwhile: the server shows where to sign in
      fetch(url("api/jobs?limit=1")).then(
        (answer) => answer.status === 401 && location.reload(),
        () => {},
      );
  };
  const open = () => {
    clearTimeout(timer);
    line = failures > 0 && failures % 4 === 0 ? new EventSource(url("events")) : new WebSocket(socketAddress());
    line.onopen = opened;
    line.onmessage = heard;
    line.onclose = closed;
    if (line instanceof EventSource)
      line.onerror = () => {
        line?.close();
        closed();
      };
  };
  const again = () => {
    if (line) return;
    wait = 0;
    open();
  };
  addEventListener("online", again);
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && again());
  open();
  return again;
}

function socketAddress() {
  const address = new URL(url("ws"));
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  return address;
}
