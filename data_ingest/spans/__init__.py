"""Data that arrives in portions: landed once, checked, described by figures, never changed."""
