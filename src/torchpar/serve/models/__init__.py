"""The kinds of models, each behind one small face: see program.py."""
