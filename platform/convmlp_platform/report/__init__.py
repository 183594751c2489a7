"""A run's report: one HTML page that needs no network, made of the run's folder alone.

Files in reading order:

    page              From a run to its page, and into a file
    reported_run      All that is known of a run, each figure by the function whose it is
    sections/         The parts of the page
    blocks            What they are made of: plain values
    svg_charts        Curves as inline SVG, which follow the page's dark and light scheme
    svg_bars          Bars and marks on an axis of time, likewise
    embedded_images   Images within the page, of a bounded size
    report_callback   The report of a run that has just ended, for its record
    page.html         The template, which escapes all that it is given

May import: config, data, data_prep.console, data_prep.dataset, data_prep.errors, data_prep.storage, errors,
evaluation, goodput, health, ledger, models, pictures, runs, tracking, training.
"""
