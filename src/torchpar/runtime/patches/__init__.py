"""What is put in the place of functions of torch: arguments of loaders, and counting."""
