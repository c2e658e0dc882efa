// Reads POST /api/v1/stream with npm's eventsource; closes at the terminal event and prints all.
import { EventSource } from "eventsource";

const seen = { events: [], opened: 0 };
const source = new EventSource(`${process.argv[2]}/api/v1/stream`, {
  fetch: (url, init) =>
    fetch(url, {
      ...init,
      method: "POST",
      headers: { ...init.headers, "Content-Type": "application/json" },
      body: JSON.stringify({
        model: "scripted/echo",
        messages: [{ role: "user", content: "hello" }],
      }),
    }),
});
source.addEventListener("open", () => (seen.opened += 1));
source.addEventListener("error", (event) => (seen.error = String(event.message)));
for (const name of ["waiting", "started", "delta", "finished", "failed"]) {
  source.addEventListener(name, (event) => {
    seen.events.push({ name, id: event.lastEventId, data: JSON.parse(event.data) });
    if (name === "finished" || name === "failed") {
      source.close();
      console.log(JSON.stringify(seen));
    }
  });
}
