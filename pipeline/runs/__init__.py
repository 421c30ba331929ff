"""What a run leaves behind and is guarded by: its folder, history in ML Metadata, lease, logs,
summary and report."""
