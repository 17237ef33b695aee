"""Where the figures of docs/performance.md come from; measures the service and its peers from outside."""
