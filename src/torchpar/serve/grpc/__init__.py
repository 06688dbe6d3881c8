"""The inference protocol over gRPC: HTTP/2, calls and messages, bounded in bytes and time."""
