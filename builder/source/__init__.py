"""Read what users have (tars, folders, listings, captions, images) as samples."""
