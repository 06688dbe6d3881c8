"""Models that only compute at the same time in processes of their own: forked, with the tensors in shared memory."""
