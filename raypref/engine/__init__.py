"""Rows through transforms on Ray: workers, batches, memory, the cluster."""
