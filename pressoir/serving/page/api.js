// Talking to the server: JSON, server-sent events, and errors that keep the server's words and request id.

const ROOT = new URL("../", import.meta.url);
let key = "";

/** What the server (or the way to it) answered instead of a result. */
export class ServerError extends Error {
  constructor(message, { status = 0, type = "unreachable", requestId = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, type, requestId, retryAfter });
  }
}

/** Send this key from now on. */
export function useKey(value) {
  key = value;
}

export const get = async (path, signal) => (await ask(path, { signal })).json();
export const post = async (path, body, signal) => (await ask(path, { body, signal })).json();

/** Yield the `data` of each event of a stream, parsed; an `error` event is thrown. */
export async function* events(path, body, signal) {
  const response = await ask(path, { body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      text += value ?? "";
      const blocks = text.split(/\r?\n\r?\n/);
      text = done ? "" : blocks.pop();
      for (const block of blocks) {
        const event = parse(block);
        if (event) yield event;
      }
      if (done) return;
    }
  } catch (error) {
    throw error instanceof TypeError ? new ServerError("The connection broke before the answer was complete.") : error;
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parse(block) {
  let name = "message";
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
  }
  if (!data.length || data[0] === "[DONE]") return null;
  const content = JSON.parse(data.join("\n"));
  if (name === "error" || content.error) throw failure(content, 200, null, null);
  return content;
}

async function ask(path, { body, signal }) {
  const headers = { accept: "application/json" };
  if (body !== undefined) headers["content-type"] = "application/json";
  if (key) headers.authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(new URL(path, ROOT), {
      method: body === undefined ? "GET" : "POST",
      body: body === undefined ? undefined : JSON.stringify(body),
      headers,
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. Is it still running?");
  }
  if (response.ok) return response;
  const content = await response.json().catch(() => null);
  const retryAfter = Number(response.headers.get("retry-after")) || null;
  throw failure(content, response.status, response.headers.get("x-request-id"), retryAfter);
}

function failure(content, status, requestId, retryAfter) {
  const error = content?.error ?? {};
  return new ServerError(typeof error.message === "string" ? error.message : `The server answered with status ${status}.`, {
    status,
    type: error.type,
    requestId: error.request_id ?? requestId,
    retryAfter,
  });
}
