"""A configured run and its folder: config, model, training, measures, report."""
