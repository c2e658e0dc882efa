// Asks with the chat page's own client. Arguments: its module, the gateway, the key, the model, and
// `stop` to stop after the first words.
const [module, address, key, model, stop] = process.argv.slice(2);
const { Gateway } = await import(module);
const gateway = new Gateway(address, key);
const seen = { events: [] };
try {
  seen.models = (await gateway.models()).models.map(({ id }) => id);
  const body = { model, messages: [{ role: "user", content: "hello" }] };
  let id = "";
  for await (const event of gateway.ask(body)) {
    seen.events.push(event);
    if (event.type === "opened") id = event.data.stream_id;
    if (stop && event.type === "delta") await gateway.stop(id);
  }
  seen.again = [];
  for await (const event of gateway.follow(id)) seen.again.push(event);
} catch (error) {
  const { message, hint, code, status } = error;
  seen.error = { message, hint, code, status };
}
console.log(JSON.stringify(seen));
