"""The component that blesses an export which loads as TF Serving loads it and answers right."""
