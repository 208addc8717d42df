"""``python -m hggraph``: the same as the command ``hggraph``."""

from hggraph.cli import app

if __name__ == "__main__":
    app(prog_name="hggraph")
