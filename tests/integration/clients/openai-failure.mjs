// Reads a stream that fails in the middle; prints the text so far and the error.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const seen = { text: "" };
try {
  const stream = await client.chat.completions.create({
    model: "scripted/echo",
    messages: [{ role: "user", content: "hello" }],
    stream: true,
  });
  for await (const chunk of stream) seen.text += chunk.choices[0].delta.content ?? "";
} catch (error) {
  seen.error = { name: error.constructor.name, code: error.code, message: error.message };
}
console.log(JSON.stringify(seen));
