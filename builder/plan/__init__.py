"""Which sample goes where: survey a source, plan its shards."""
