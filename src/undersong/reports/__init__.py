"""Reports: the results of an experiment, as a table in the terminal and as one HTML page.

A report is drawn from the `results.json` of an experiment and from nothing else, and it computes no statistic of its own:
means, intervals and p-values were made by `experiment.py` from stored rows. The unit is the training run, so a figure
shows each run as a dot and says how many there are.

* `tables.summary(results)` is plain text; `tables.show(results)` prints it, with colour only on a terminal.
* `html.render(results)` is one self-contained page as a string; `html.write(results, path)` puts it in a file. Needs the
  `[report]` extra. The page makes no outside request and its policy forbids them; nothing in a row can run as script.

Reading order: `reading` (results in, a checked view out), `wording` (numbers and arms in words), `tables`, `figures`,
`html` with its template `page.html.j2`. Every section may be missing: a tier-0 experiment has only runs, rates and
contrasts.
"""

from __future__ import annotations
