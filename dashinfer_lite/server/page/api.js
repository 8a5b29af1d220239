// Talks with the server: JSON, streams of events, the API key. All paths are relative to the page.

const KEY = "dashinfer-key";

/** What the server refused, in its own words. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let askForKey = () => Promise.resolve(null);
let asking = null;

/** `ask(isWrong)` resolves to a key, or to null where nobody gives one. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/** A response that is fine; a body makes it a POST. A key is asked for where the server wants one. */
export async function call(path, { body, signal } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = {};
    if (key) headers.Authorization = `Bearer ${key}`;
    if (body) headers["Content-Type"] = "application/json";
    const method = body ? "POST" : "GET";
    const response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
    if (response.ok) return response;
    const problem = await problemOf(response);
    if (response.status !== 401 || !(await newKey(key))) throw problem;
  }
}

/** The objects of an event stream, as they come. Leaving the loop, or the signal, closes the connection. */
export async function* events(path, body, signal) {
  const response = await call(path, { body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new ApiError(0, "The connection broke off.");
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ")) continue;
        const data = line.slice(6);
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new ApiError(200, event.error.message);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Whether there is another key than `tried` now; those who ask at the same time share one question. */
async function newKey(tried) {
  if (sessionStorage.getItem(KEY) === tried) {
    asking ??= askForKey(tried !== null).finally(() => (asking = null));
    const key = await asking;
    if (!key) return false;
    sessionStorage.setItem(KEY, key);
  }
  return true;
}

async function problemOf(response) {
  const answer = await response.json().catch(() => ({}));
  let message = answer.error?.message ?? `The server answered ${response.status}.`;
  const wait = response.headers.get("Retry-After");
  if (wait) message += ` Try again in ${wait} s.`;
  return new ApiError(response.status, message);
}
