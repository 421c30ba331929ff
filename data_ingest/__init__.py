"""From images to records of pairs: sources, sampling, records, and data that arrives in spans."""
