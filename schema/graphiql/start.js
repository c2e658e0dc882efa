const KEY = "gateway-api-key";
const query = `# Every model, and why any provider is missing
{
  availableModels {
    models {
      id
      provider
      name
      state
      sizeBytes
      capabilities
      metadata { key value }
    }
    providerErrors {
      provider
      code
      message
    }
  }
}
`;
const root = ReactDOM.createRoot(document.getElementById("graphiql"));
const bar = document.getElementById("key");

// Requests carry the key; GraphQL over WebSocket brings it in its first message.
function makeFetcher(key) {
  const sent = key ? { authorization: `Bearer ${key}` } : {};
  return GraphiQL.createFetcher({
    url: window.location.pathname,
    headers: { accept: "application/graphql-response+json", ...sent },
    // The graphql-ws client is part of GraphiQL's script.
    subscriptionUrl: window.location.origin.replace(/^http/, "ws") + window.location.pathname,
    wsConnectionParams: sent,
    fetch: async (...request) => {
      const reply = await fetch(...request);
      if (reply.status === 401) askForKey();
      return reply;
    },
  });
}

function askForKey() {
  bar.hidden = false;
  if (document.activeElement === document.body) bar.elements.key.focus();
}

function show() {
  const key = sessionStorage.getItem(KEY) ?? "";
  if (key) askForKey();
  // Another key is another GraphiQL: it asks for the schema anew.
  root.render(
    React.createElement(GraphiQL, { key, fetcher: makeFetcher(key), defaultQuery: query }),
  );
}

bar.addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, bar.elements.key.value.trim());
  bar.elements.key.value = "";
  show();
});
show();
