// Opens a stream, then reads it with npm's eventsource as a browser does: by GET and the token alone.
// Arguments: the URL to open at, the URL to read at, and `close` to close at the end by itself.
import { EventSource } from "eventsource";

const [openAt, readAt, close] = process.argv.slice(2);
const opened = await fetch(`${openAt}/api/v1/streams`, {
  method: "POST",
  headers: { "Content-Type": "application/json", Authorization: "Bearer ours" },
  body: JSON.stringify({
    model: "scripted/echo",
    messages: [{ role: "user", content: "hello" }],
  }),
});
const { url, token } = await opened.json();
const seen = { events: [], opened: 0, lost: 0 };
const source = new EventSource(`${readAt}${url}?token=${token}`);

function finish() {
  source.close();
  console.log(JSON.stringify(seen));
}

source.addEventListener("open", () => (seen.opened += 1));
source.addEventListener("error", (event) => {
  seen.lost += 1;
  if (source.readyState === EventSource.CLOSED) {
    seen.code = event.code;
    finish();
  }
});
for (const name of ["waiting", "started", "delta", "finished", "failed"]) {
  source.addEventListener(name, (event) => {
    seen.events.push({ name, id: event.lastEventId, data: JSON.parse(event.data) });
    if (close && (name === "finished" || name === "failed")) finish();
  });
}
