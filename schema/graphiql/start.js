const fetcher = GraphiQL.createFetcher({
  url: window.location.pathname,
  headers: { accept: "application/graphql-response+json" },
  // The graphql-ws client is part of GraphiQL's script.
  subscriptionUrl: window.location.origin.replace(/^http/, "ws") + window.location.pathname,
});
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
ReactDOM.createRoot(document.getElementById("graphiql")).render(
  React.createElement(GraphiQL, { fetcher, defaultQuery: query }),
);
