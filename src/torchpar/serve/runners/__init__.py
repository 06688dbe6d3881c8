"""What computes a batch: threads of the serving process, or forked processes with tensors in shared memory."""
