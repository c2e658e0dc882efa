// Reads server-sent events out of text that may be cut anywhere, as the HTML standard says:
// lines end with LF, CR or CRLF; a blank line sends the event; a line that begins with a colon is
// a comment; an event that the end cuts off is dropped.
class EventParser {
  #line = "";
  #afterReturn = false;
  #data = [];
  #type = "";
  #id = "";

  // Returns the events that `text` completes: {type, data, id}.
  push(text) {
    const events = [];
    for (const character of text) {
      const isSecondHalf = this.#afterReturn && character === "\n";
      this.#afterReturn = character === "\r";
      if (isSecondHalf) continue;
      if (character === "\r" || character === "\n") {
        this.#endLine(events);
      } else {
        this.#line += character;
      }
    }
    return events;
  }

  #endLine(events) {
    const line = this.#line;
    this.#line = "";
    if (line === "") {
      if (this.#data.length) {
        events.push({ type: this.#type || "message", data: this.#data.join("\n"), id: this.#id });
      }
      this.#data = [];
      this.#type = "";
      return;
    }
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "data") this.#data.push(value);
    if (field === "event") this.#type = value;
    if (field === "id" && !value.includes("\0")) this.#id = value;
    // The rest is a comment (no field name), `retry`, or not known.
  }
}

// Yields the events of a body of bytes as they arrive; a character may be cut by a chunk, too.
export async function* readEvents(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops reading closes the connection
  }
}
