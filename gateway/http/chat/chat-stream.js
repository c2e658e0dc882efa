// The gateway as a page uses it: ask, read on after a cut, stop. Knows nothing of the page.
//
// A stream is opened as `detached`: it goes on while nobody reads, and any reader may go on from the
// number of the last event he had. fetch, and not the browser's EventSource: that one can send
// neither a body nor a key, and does not say why it was refused.
import { readEvents } from "./chat-events.js";

const WAITS_MS = [0, 250, 500, 1000, 2000, 4000, 8000];

// The gateway's answer when it is no success, or no answer at all.
export class Refusal extends Error {
  constructor(error, status = 0) {
    super(error.message);
    this.status = status;
    this.code = error.code;
    this.hint = error.hint;
    this.retryable = error.retryable ?? false;
  }
}

export class Gateway {
  constructor(address, key = "") {
    this.address = address.replace(/\/+$/, "");
    this.key = key;
  }

  // Returns what GET /api/v1/models lists of models that chat.
  async models() {
    return (await this.#request("GET", "/api/v1/models?capability=chat")).json();
  }

  // Yields the events of an answer, {type, data}, whatever happens to the connection: `opened` first,
  // with the stream's id, and `cut` each time before it is read on. Aborting `signal` ends it
  // only until there is an id; then `stop` does.
  async *ask(body, signal) {
    const headers = { "content-type": "application/json" };
    const asked = JSON.stringify({ ...body, detached: true });
    const reply = await this.#request("POST", "/api/v1/stream", { headers, body: asked, signal });
    const id = reply.headers.get("x-stream-id");
    yield { type: "opened", data: { stream_id: id } };
    yield* this.#read(id, reply);
  }

  // Yields all events of a stream that was opened before.
  async *follow(id) {
    yield* this.#read(id, null);
  }

  // Stops the model; the stream's reader gets `finished`.
  async stop(id) {
    await this.#request("DELETE", streamPath(id));
  }

  async *#read(id, reply) {
    let after = "";
    let ended = false; // the body is read to its end all the same: so its connection is kept
    for (let cuts = 0; ; cuts += 1) {
      try {
        reply ??= await this.#request("GET", streamPath(id), {
          headers: after ? { "last-event-id": after } : {},
        });
        if (reply.status === 204) return; // the event before was the last
        for await (const event of readEvents(reply.body)) {
          if (event.id) after = event.id;
          cuts = 0;
          yield { type: event.type, data: JSON.parse(event.data) };
          ended = event.type === "finished" || event.type === "failed";
        }
      } catch (error) {
        if (!ended && error instanceof Refusal && error.status && !error.retryable) throw error;
      }
      if (ended) return;
      if (cuts >= WAITS_MS.length) throw lost("The connection was lost, and does not come back.");
      reply = null;
      yield { type: "cut", data: { after: Number(after) } };
      await new Promise((wake) => setTimeout(wake, WAITS_MS[cuts]));
    }
  }

  async #request(method, path, { headers = {}, ...rest } = {}) {
    const sent = this.key ? { ...headers, authorization: `Bearer ${this.key}` } : headers;
    let reply;
    try {
      reply = await fetch(this.address + path, { method, headers: sent, ...rest });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw lost(`${this.address} cannot be reached.`); // fetch has one sentence for all of it
    }
    if (reply.ok) return reply;
    throw new Refusal(await describe(reply), reply.status);
  }
}

function streamPath(id) {
  return `/api/v1/streams/${encodeURIComponent(id)}`;
}

function lost(message) {
  const hint = "Does it run, and does it allow this page's origin (GATEWAY_CORS_ORIGINS)?";
  return new Refusal({ message, hint, code: "unreachable", retryable: true });
}

async function describe(reply) {
  try {
    return (await reply.json()).error;
  } catch {
    return { message: `The gateway answered ${reply.status}.`, code: "unreadable" };
  }
}
