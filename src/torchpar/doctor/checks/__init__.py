"""The checks, by subject; a module that is put here is found."""
