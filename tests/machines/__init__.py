"""Tests on booted Debian machines, and what boots them."""
