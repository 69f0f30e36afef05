"""The engine: continuous batching of token ids, one thread per bundle; it knows neither text nor HTTP."""
