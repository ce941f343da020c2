"""Pages in the browser: `site` and ``shared/`` are what all have in common, `watch` shows a run, `ask` a team that
is served."""
