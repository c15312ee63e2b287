"""The worker of the containment benchmark: `python -m benchmarks.contained_app run`."""

from bus import App


app = App("containment", events="benchmarks.contained", services="benchmarks.contained")

if __name__ == "__main__":
    app.cli()
