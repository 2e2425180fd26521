"""Windows of recordings: the parquet file, how it is made and read."""
