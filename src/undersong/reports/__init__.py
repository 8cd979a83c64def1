"""Reports: the results of an experiment, of an audit and of an explanation, in the terminal and as one HTML page.

A report is drawn from one JSON file and from nothing else, and it computes no statistic of its own: means, intervals and
p-values were made by `experiment.py` and `audit.py` from stored rows. In an experiment the unit is the training run: a
figure shows each run as a dot. In an audit it is the placebo: a figure shows each of them beside what was audited.

* `tables.summary(results)` is plain text; `tables.show(results)` prints it, with colour only on a terminal.
* `html.render(results)` is one self-contained page as a string; `html.write(results, path)` puts it in a file.
* `audit.summary(audit)`, `audit.render(audit)` and `audit.write(audit, path)` do the same for an audit, and those of
  `explain` for an explanation.

Pages need the `[report]` extra. They make no outside request and their policy forbids them; no text of a row can run.

Reading order: `parts` (what a page is made of), `wording` (numbers and names in words), `page` with `page.html.j2` and
`draw.js`, `terminal`. An experiment: `reading` (results in, a checked view out), `tables`, `figures` and their `marks`,
`sections` (what the page says), `html`. An audit: `audit_fields` and `audit_reading`, `audit_figures`, `audit_tables`,
`audit_sections`, `audit`. An explanation: `explain_tables`, `explain_figures`, `explain_sections`, `explain`. Every list of
the results but runs and rates may be missing: a tier-0 experiment has no matrix, no filters and no traits; of an audit any
field may be.
"""

from __future__ import annotations
