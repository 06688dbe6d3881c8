"""Checks of a host: each takes what was read of it, and says what is wrong, where that is seen, and what cures it.

`host` is what they look at, `check` how one is declared and run, `finding` what it answers; the checks are the modules
of `checks`, found by that folder.
"""
