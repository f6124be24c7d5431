"""From folders as users have them to samples: tars, listings, captions, images."""
