"""The shop's worker: names the app and hands over to its command line."""

from bus import App
from examples.demo import demo


app = App("shop", events="events", services="handlers", commands=[demo])

if __name__ == "__main__":
    app.cli()
