// Reads a stream that goes on with another model; prints the text, the end and the switch.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const stream = await client.chat.completions.create({
  model: process.argv[3],
  messages: [{ role: "user", content: "hello" }],
  stream: true,
  continue_on_failure: true,
});
const seen = { text: "" };
for await (const chunk of stream) {
  seen.text += chunk.choices[0].delta.content ?? "";
  seen.reason = chunk.choices[0].finish_reason ?? seen.reason;
  seen.switched = chunk.switched ?? seen.switched;
}
console.log(JSON.stringify(seen));
