// The chat page: what is said, drawn as it comes. What passes between it and the gateway is chat-stream.js.
import { Gateway } from "./chat-stream.js";

const $ = (id) => document.getElementById(id);
const address = new URLSearchParams(location.search).get("gateway") || location.origin;
const WAITING = {
  queued: "Waiting for a turn",
  downloading: "Downloading the model",
  loading: "Loading the model",
  prefill: "Reading the messages",
};

const OPTIONS = ["temperature", "max-tokens", "system"];

const keeping = (storage) => ({
  get: (name, otherwise) => JSON.parse(storage.getItem(name)) ?? otherwise,
  set: (name, value) => storage.setItem(name, JSON.stringify(value)),
});
const kept = keeping(sessionStorage); // the key and what is said: outlives a reload, not the tab
const chosen = keeping(localStorage); // the model and the options: as they were the last time
const conversation = kept.get("conversation", []);
let running = null; // {id, abort} of the answer that comes now

const gateway = () => new Gateway(address, kept.get("key", ""));

async function listModels() {
  try {
    const { models } = await gateway().models();
    const last = chosen.get("model", "");
    const choice = ({ id }) => new Option(id, id, id === last, id === last);
    const single = models.filter(({ virtual }) => !virtual).map(choice);
    const several = models.filter(({ virtual }) => virtual).map(choice);
    const groups = [group("Models", single), group("Names for several models", several)];
    $("model").replaceChildren(...(several.length ? groups : single));
    say(models.length ? "" : "No model here can chat.");
  } catch (error) {
    refuse(error);
  }
}

function group(label, choices) {
  const made = document.createElement("optgroup");
  made.label = label;
  made.append(...choices);
  return made;
}

async function ask(text) {
  conversation.push({ role: "user", content: text });
  addTurn("user").append(text);
  const abort = new AbortController();
  const body = { model: $("model").value, messages: messages(), options: options() };
  await show(addTurn("assistant"), gateway().ask(body, abort.signal), { id: "", abort });
}

// Shows an answer to its end, however often it is cut, and keeps what came of it.
async function show(turn, events, stream) {
  setRunning(stream);
  say("Sending ...");
  const answer = { text: "" };
  try {
    for await (const event of events) draw(turn, answer, event);
  } catch (error) {
    if (error.name === "AbortError") addPart(turn, "note", "Stopped.");
    else refuse(error, turn);
  } finally {
    // A question without an answer is not part of the conversation.
    if (answer.text) conversation.push({ role: "assistant", content: answer.text });
    else conversation.pop();
    kept.set("conversation", conversation);
    setRunning(null);
  }
}

function draw(turn, answer, { type, data }) {
  switch (type) {
    case "opened":
      running.id = data.stream_id;
      kept.set("conversation", conversation);
      kept.set("running", data.stream_id); // a page that is loaded again reads on
      break;
    case "cut":
      say(`The connection was cut; reading on after event ${data.after} ...`);
      break;
    case "waiting":
      sayWaiting(data);
      break;
    case "started":
      say(`${data.model} answers ...`);
      break;
    case "delta":
      say("");
      if (data.reasoning) addPart(turn, "reasoning", data.reasoning);
      if (data.tool_call) {
        addPart(turn, "note", `${data.tool_call.name}(${data.tool_call.arguments})`);
      }
      if (data.text) addPart(turn, "text", data.text);
      answer.text += data.text ?? "";
      break;
    case "switched":
      say("");
      addPart(turn, "note", `${data.from} broke off; ${data.to} goes on.`);
      break;
    case "finished":
      say("");
      addPart(turn, "note", describeEnd(data));
      break;
    case "failed":
      refuse(data, turn);
      break;
  }
}

function describeEnd({ reason, usage, timings }) {
  const said = { length: "cut at the limit", cancelled: "stopped" }[reason];
  const first = timings.ttft_ms === null ? null : `first after ${seconds(timings.ttft_ms)}`;
  const counted = `${usage.prompt_tokens} + ${usage.completion_tokens} tokens`;
  return [counted, `in ${seconds(timings.total_ms)}`, first, said].filter(Boolean).join(", ");
}

function sayWaiting({ stage, position, fraction, eta_s }) {
  const place = position ? ` (number ${position})` : "";
  const left = eta_s ? `, ${Math.ceil(eta_s)} s left` : "";
  say(`${WAITING[stage] ?? stage}${place} ...${left}`, fraction);
}

function say(text, fraction) {
  $("say").textContent = text;
  $("progress").hidden = fraction === undefined;
  if (fraction !== undefined) $("progress").value = fraction;
}

// Tells an error with its hint, in the turn that it ended or below; without a key, asks for one.
function refuse(error, turn) {
  const hint = error.status === 401 ? "Put one in above." : error.hint;
  const text = [error.message, hint, error.code && `(${error.code})`].filter(Boolean).join(" ");
  say(turn ? "" : text);
  if (turn) addPart(turn, "error", text);
  if (error.status === 401) {
    $("settings").open = true;
    $("key").focus();
  }
}

function addTurn(role) {
  $("hello").hidden = true;
  const turn = document.createElement("div");
  turn.className = `turn ${role}`;
  $("log").append(turn);
  $("log").scrollTop = $("log").scrollHeight;
  return turn;
}

// Text goes to the last part if that is of the same kind; notes and errors stand alone.
function addPart(turn, kind, text) {
  const log = $("log");
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  let part = turn.lastElementChild;
  if (part?.className !== kind || kind === "note" || kind === "error") {
    part = document.createElement("span");
    part.className = kind;
    turn.append(part);
  }
  part.append(text);
  if (isAtEnd) log.scrollTop = log.scrollHeight;
}

function messages() {
  const system = $("system").value.trim();
  return system ? [{ role: "system", content: system }, ...conversation] : conversation;
}

function options() {
  const given = { temperature: $("temperature").value, max_tokens: $("max-tokens").value };
  const said = Object.entries(given).filter(([, value]) => value !== "");
  return Object.fromEntries(said.map(([name, value]) => [name, Number(value)]));
}

function setRunning(stream) {
  running = stream;
  if (!stream) kept.set("running", "");
  $("send").hidden = $("new").disabled = Boolean(stream);
  $("stop").hidden = !stream;
}

const seconds = (milliseconds) => `${(milliseconds / 1000).toFixed(2)} s`;

async function stop() {
  if (!running.id) return running.abort?.abort();
  try {
    await gateway().stop(running.id);
  } catch (error) {
    refuse(error);
  }
}

function restore() {
  for (const { role, content } of conversation) addPart(addTurn(role), "text", content);
  const id = kept.get("running", "");
  if (id) show(addTurn("assistant"), gateway().follow(id), { id });
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (running || !text) return;
  $("text").value = "";
  ask(text);
});
$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("form").requestSubmit();
});
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  kept.set("key", $("key").value.trim());
  $("settings").open = false;
  listModels();
});
$("stop").addEventListener("click", () => running && stop());
$("new").addEventListener("click", () => {
  conversation.length = 0;
  kept.set("conversation", []);
  $("log").replaceChildren($("hello"));
  $("hello").hidden = false;
});
$("model").addEventListener("change", () => chosen.set("model", $("model").value));
for (const id of OPTIONS) {
  $(id).value = chosen.get(id, "");
  $(id).addEventListener("input", () => chosen.set(id, $(id).value));
}
$("key").value = kept.get("key", "");
await listModels();
restore();
