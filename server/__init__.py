"""The HTTP door of a cloud: HTTP requests in, calls of `handoff.Cloud` out; it has no privacy rule of its own."""
