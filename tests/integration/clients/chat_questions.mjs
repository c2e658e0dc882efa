// Asks five questions, one after the other, with the chat page's own client. Arguments: its module,
// the gateway, the key, the model. Prints the ends.
const [module, address, key, model] = process.argv.slice(2);
const { Gateway } = await import(module);
const gateway = new Gateway(address, key);
const ends = [];
for (let asked = 0; asked < 5; asked += 1) {
  const body = { model, messages: [{ role: "user", content: "hello" }] };
  for await (const { type } of gateway.ask(body)) ends[asked] = type;
}
console.log(JSON.stringify(ends));
