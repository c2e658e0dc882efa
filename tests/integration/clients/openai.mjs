// Uses openai-node against the base URL in argv and prints what it saw as one JSON object.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const ask = { model: "scripted/echo", messages: [{ role: "user", content: "hello" }] };
const seen = { models: [], chunks: [] };

for await (const model of client.models.list()) seen.models.push(model.id);
seen.model = (await client.models.retrieve("scripted/echo")).id;
seen.answer = (await client.chat.completions.create(ask)).choices[0].message.content;
const stream = await client.chat.completions.create({
  ...ask,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) seen.chunks.push(chunk);
try {
  await client.chat.completions.create({ ...ask, model: "nobody/has/this" });
} catch (error) {
  seen.notFound = { name: error.constructor.name, status: error.status, code: error.code };
}
console.log(JSON.stringify(seen));
