"""The kinds of models, each behind one small interface: see program.py."""
