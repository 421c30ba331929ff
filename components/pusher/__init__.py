"""The component that puts a blessed model into the serving folder whole, and finds earlier ones."""
