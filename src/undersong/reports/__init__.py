"""Reports: the results of an experiment, as a table in the terminal and as one HTML page.

A report is drawn from the `results.json` of an experiment and from nothing else, and it computes no statistic of its
own: means, intervals and p-values were made by `experiment.py` from stored rows. The unit is the training run, so a
figure shows each run as a dot and says how many there are.

* `tables.summary(results)` is plain text; `tables.show(results)` prints it, with colour only on a terminal.
* `html.render(results)` is one self-contained page as a string; `html.write(results, path)` puts it in a file. It needs
  the `[report]` extra. The page makes no outside request and its policy forbids them; no text of a row can run.

Reading order: `reading` (results in, a checked view out), `wording` (numbers, arms in words), `tables`, `figures` and
their `marks`, `sections` (what the page says), `html` with `page.html.j2` and `draw.js`. Every list of the results but
runs and rates may be missing: a tier-0 experiment has no matrix, no filters and no traits.
"""

from __future__ import annotations
