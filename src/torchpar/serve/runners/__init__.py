"""Computes batches: in threads of the serving process, or in forked processes with tensors in shared memory."""
