// Reads bytes cut at every place with the chat page's parser. Arguments: its module, the bytes.
const [module, text] = process.argv.slice(2);
const { readEvents } = await import(module);
const bytes = new Uint8Array(JSON.parse(text));

async function read(chunks) {
  const body = new ReadableStream({
    start(controller) {
      chunks.forEach((chunk) => controller.enqueue(chunk));
      controller.close();
    },
  });
  const events = [];
  for await (const { type, id, data } of readEvents(body)) events.push([type, id, data]);
  return events;
}

const seen = [await read([...bytes].map((byte) => Uint8Array.of(byte)))];
for (let at = 0; at <= bytes.length; at++) {
  seen.push(await read([bytes.slice(0, at), bytes.slice(at)]));
}
console.log(JSON.stringify(seen));
