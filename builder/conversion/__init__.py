"""Convert and index: one shard, one pass, finish; what both share."""
