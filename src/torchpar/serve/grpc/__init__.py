"""The inference protocol over gRPC, where the interpreter has grpcio."""
