"""What lies in OUT: shards, receipts, index, manifest, card."""
