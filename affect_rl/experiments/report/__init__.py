"""One page that shows what experiments found: read (`experiment`), summarise, plot, render (`page`, `markdown`)."""
