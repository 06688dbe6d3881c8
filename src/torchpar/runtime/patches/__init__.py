"""Stands in for functions of torch: arguments of loaders, and counting."""
