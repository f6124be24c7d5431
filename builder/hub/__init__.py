"""Push to the Hub: the client, what is sent, pushing while converting."""
