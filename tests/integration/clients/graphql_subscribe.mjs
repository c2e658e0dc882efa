// Watches the states of models with a real client, and loads one once it has seen the snapshot.
// Arguments: `sse` or `ws`, the URL of the endpoint, the model. Prints what it was told.
import { createClient as createSseClient } from "graphql-sse";
import { createClient as createSocketClient } from "graphql-ws";

const [protocol, url, model] = process.argv.slice(2);
const client =
  protocol === "sse"
    ? createSseClient({ url, retryAttempts: 0 })
    : createSocketClient({ url: url.replace(/^http/, "ws"), retryAttempts: 0 });

const subscription = {
  query: `subscription($models: [ID!]) {
    modelStateChanged(models: $models) { snapshot models { id state } }
  }`,
  variables: { models: [model] },
};
const load = {
  query: "mutation($input: LoadModelInput!) { loadModel(input: $input) { state } }",
  variables: { input: { model } },
};

const told = [];
const states = [];
for await (const result of client.iterate(subscription)) {
  told.push(result);
  const update = result.data.modelStateChanged;
  if (update.snapshot) {
    for await (const answer of client.iterate(load)) told.push(answer);
  } else {
    states.push(...update.models.map((model) => model.state));
  }
  if (states.includes("LOADED")) break;
}
client.dispose();
process.stdout.write(JSON.stringify({ told, states }));
